"""Inputs of any model of transformers, made from the names of the arguments of its forward and from its config."""

import inspect
import itertools
import re
from collections.abc import Iterator
from typing import Any

import torch
from tiny_configs import FIRST_SPECIAL, WIDTH
from torch import Tensor

__all__ = ["outputs_of", "working_inputs"]

BATCH, TOKENS, FRAMES, SAMPLES = 2, 8, 64, 4000
HIDDEN = 1e5
"""Larger outputs are those of positions that a model hides; they would hide the others, too."""

Inputs = dict[str, Any]


def working_inputs(model: Any) -> Inputs:
    """Return inputs with which the model runs in evaluation mode, as many different ones as possible.

    Raises:
        ValueError: it runs with none of those that were tried; the message says why not with the first.
    """
    reasons = []
    for inputs in itertools.islice(_candidates(model), 40):
        for _ in range(3):
            try:
                if (outputs := outputs_of(model, inputs)).isfinite().all() and outputs.numel():
                    return inputs
                reasons.append("its outputs are not finite")
            except Exception as error:  # noqa: BLE001 -- of any class of transformers
                reasons.append(f"{type(error).__name__}: {str(error).strip()}")
                if (more := _with_image_tokens(model, inputs, reasons[-1])) is not None:
                    inputs = more
                    continue
            break
    raise ValueError("; ".join(dict.fromkeys(r[:150] for r in reasons)) if reasons else "no input is known")


def outputs_of(model: Any, inputs: Inputs, *, gradients: bool = False, length: int | None = None) -> Tensor:
    """Return the floating-point outputs of a model in one vector, without caches.

    Args:
        model: model to call; its random numbers start from one seed.
        inputs: its inputs.
        gradients: whether the outputs have gradients.
        length: columns at the end of longer outputs, (batch, columns, ...); None: all.
    """
    with torch.random.fork_rng(), torch.set_grad_enabled(gradients):
        torch.manual_seed(0)
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        found = list(_tensors(model(**copies)))
    if length is not None:
        found = [tensor[:, -length:] if tensor.ndim > 1 and tensor.shape[1] > length else tensor for tensor in found]
    outputs = torch.cat([tensor.flatten().float() for tensor in found]) if found else torch.zeros(0)
    return outputs.masked_fill(outputs.abs() > HIDDEN, 0)


def _tensors(value: Any, name: str = "") -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and "past" not in name and "cache" not in name:
            yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner, name)


def _candidates(model: Any) -> Iterator[Inputs]:
    """Yield inputs, those with the most kinds first."""
    parameters = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    required = [
        name
        for name, found in parameters.items()
        if found.default is found.empty and found.kind is not found.VAR_KEYWORD
    ]
    values = {name: list(make(model)) for name, make in _KINDS.items() if name in parameters}
    values = {name: found for name, found in values.items() if found}
    if "pixel_values" in values:
        values.pop("grid_thw", None)
    if "decoder_input_ids" in values and not getattr(model.config, "is_encoder_decoder", False):
        del values["decoder_input_ids"]
    needed = {main, *required} & values.keys()
    decoder = {"decoder_input_ids", "decoder_input_values"} & values.keys()
    sets = [set(values), needed | decoder, needed, {"input_ids", *decoder} & values.keys()]
    seen = []
    for names in sets:
        if not names or names in seen:
            continue
        seen.append(names)
        options = [[(name, value) for value in values[name]] for name in values if name in names]
        for chosen in itertools.islice(itertools.product(*options), 12):
            inputs = dict(chosen)
            yield {
                **{name: value for name, value in inputs.items() if not isinstance(value, dict)},
                **{key: inner for value in inputs.values() if isinstance(value, dict) for key, inner in value.items()},
            }


def _ids(model: Any, seed: int = 0, count: int = TOKENS) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min(FIRST_SPECIAL, getattr(model.config.get_text_config(), "vocab_size", None) or FIRST_SPECIAL)
    shape = (BATCH, 3, count) if type(model).__name__.endswith("MultipleChoice") else (BATCH, count)
    ids = torch.randint(5, max(vocabulary, 6), shape, generator=generator)
    end = _setting(model, "eos_token_id")
    ids[..., -1] = end if isinstance(end, int) else 2  # some classifiers read the state at the end of the text
    yield ids


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _setting(model: Any, *names: str) -> Any:
    """Return the first of these settings that the configuration, or one inside it, has."""
    config = model.config
    inner = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    deeper = [value for found in inner for value in vars(found).values() if hasattr(value, "to_dict")]
    for name in names:
        for found in (config, *inner, *deeper):
            if (value := getattr(found, name, None)) is not None:
                return value
    return None


def _side(model: Any) -> tuple[int, int]:
    size = _setting(model, "image_size") or 64
    return (size, size) if isinstance(size, int) else tuple(size)[-2:]


def _images(model: Any) -> Iterator[Any]:
    channels = _setting(model, "num_channels", "in_channels", "in_chans", "num_image_channels")
    channels = channels if isinstance(channels, int) else 3
    height, width = _side(model)
    patch, steps = _setting(model, "patch_size"), _setting(model, "temporal_patch_size")
    parameters = inspect.signature(model.forward).parameters
    if "image_grid_thw" in parameters and isinstance(patch, int):
        values = _random(BATCH * 16, channels * (steps or 1) * patch * patch)
        yield {"pixel_values": values, "image_grid_thw": torch.tensor([[1, 4, 4]] * BATCH)}
    if "grid_thw" in parameters and isinstance(patch, int):
        values = _random(BATCH * 16, channels * (steps or 1) * patch * patch)
        name = "hidden_states" if "hidden_states" in parameters else "pixel_values"
        yield {name: values, "grid_thw": torch.tensor([[1, 4, 4]] * BATCH)}
    if "spatial_shapes" in parameters and isinstance(patch, int):
        yield {
            "pixel_values": _random(BATCH, 16, channels * patch * patch),
            "pixel_attention_mask": torch.ones(BATCH, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * BATCH),
        }
    if "Keypoint" in type(model).__name__:
        yield _random(BATCH, 2, channels, height, width)
    if "image_sizes" in parameters:
        yield {
            "pixel_values": _random(BATCH, channels, height, width),
            "image_sizes": torch.tensor([[height, width]] * BATCH),
        }
        yield {
            "pixel_values": _random(BATCH, 3, channels, height, width),
            "image_sizes": torch.tensor([[height, width]] * BATCH),
        }
    frames = _setting(model, "num_frames", "frames_per_clip")
    if isinstance(frames, int) and "Video" in type(model).__name__ + str(type(model.config)):
        yield _random(BATCH, frames, channels, height, width)
    yield _random(BATCH, channels, height, width)
    yield _random(BATCH, 1, channels, height, width)
    if isinstance(frames, int):
        yield _random(BATCH, frames, channels, height, width)
    if height != 224:
        yield _random(BATCH, channels, 224, 224)


def _videos(model: Any) -> Iterator[Any]:
    height, width = _side(model)
    if _setting(model, "frames_per_clip"):
        yield _random(BATCH, _setting(model, "frames_per_clip"), 3, height, width)


def _sounds(model: Any) -> Iterator[Tensor]:
    if mels := _setting(model, "num_mel_bins"):
        yield _random(BATCH, _setting(model, "max_length") or FRAMES, mels)
    yield _random(BATCH, SAMPLES)
    yield _random(BATCH, 1, SAMPLES)
    yield _random(BATCH, 8 * SAMPLES)


def _features(model: Any) -> Iterator[Tensor]:
    mels = _setting(model, "num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "input_dim")
    mels = mels if isinstance(mels, int) else 80
    if positions := _setting(model, "max_source_positions"):
        yield _random(BATCH, mels, 2 * positions)
    yield _random(BATCH, FRAMES, mels)
    yield _random(BATCH, mels, FRAMES)
    yield _random(BATCH, 1, _setting(model, "spec_size") or FRAMES, mels)
    yield _random(BATCH, FRAMES, 160)


def _decoder_ids(model: Any) -> Iterator[Any]:
    if type(model).__name__.endswith(("SequenceClassification", "QuestionAnswering")):
        return  # the decoder reads the same text
    yield from _ids(model, seed=1, count=5)


def _mask(model: Any) -> Iterator[Tensor]:
    if getattr(model, "main_input_name", "") == "input_ids":
        yield torch.ones_like(next(_ids(model)))


def _boxes(model: Any) -> Iterator[Tensor]:
    size = getattr(model.config, "dim_bbox", 4)
    yield torch.zeros(BATCH, TOKENS, size, dtype=torch.float if "Bros" in type(model).__name__ else torch.long)


def _past(model: Any) -> Iterator[Any]:
    length, lags = _setting(model, "context_length") or 32, _setting(model, "lags_sequence") or [0]
    channels = _setting(model, "num_input_channels")
    if channels:
        yield _random(BATCH, length, channels)
        return
    total, features = length + max(lags), _setting(model, "num_time_features") or 0
    future = _setting(model, "prediction_length") or 8
    yield {
        "past_values": _random(BATCH, total),
        "past_time_features": _random(BATCH, total, features),
        "past_observed_mask": torch.ones(BATCH, total),
        "future_time_features": _random(BATCH, future, features),
        "future_values": _random(BATCH, future),
    }
    yield [_random(128), _random(128)]


_KINDS = {
    "input_ids": _ids,
    "attention_mask": _mask,
    "decoder_input_ids": _decoder_ids,
    "pixel_values": _images,
    "grid_thw": _images,
    "qformer_input_ids": _ids,
    "pixel_values_videos": _videos,
    "input_values": _sounds,
    "input_features": _features,
    "bbox": _boxes,
    "past_values": _past,
    "inputs": lambda model: iter([*_ids(model, count=_setting(model, "max_position_embeddings") or TOKENS)]),
}
"""Functions that yield possible values of an argument: tensors, or the values of several arguments by name."""


def _with_image_tokens(model: Any, inputs: Inputs, reason: str) -> Inputs | None:
    """Return inputs with as many image tokens as there are image features, by what the message says; else None."""
    token = _setting(model, "image_token_id", "image_token_index")
    parameters = inspect.signature(model.forward).parameters
    numbers = [int(number) for number in re.findall(r"\d+", reason)]
    if "do not match" not in reason or token is None or "input_ids" not in inputs or len(numbers) < 2:
        return None
    text, present = inputs["input_ids"], int((inputs["input_ids"] == token).sum())
    wanted = next((number for number in numbers if number not in (present, 0)), 0)
    if present and not wanted and present % (BATCH * WIDTH) == 0:  # some count the numbers of a feature, too
        text, wanted = text[:, : -present // BATCH], present // WIDTH
    if not wanted or wanted % BATCH or wanted > 8000:
        return None
    ids = torch.cat([text, torch.full((BATCH, wanted // BATCH), token)], 1)
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == token).int()}
    return inputs | {
        name: value for name, value in more.items() if name in inputs or name in {"mm_token_type_ids"} & set(parameters)
    }
