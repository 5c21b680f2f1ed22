"""Count the trained parameters of every method on four known models, and check the formulas of docs/concepts/.

    python benchmarks/parameter_counts.py

writes benchmarks/results/parameter_counts.json. The models are made from their configurations on torch's device `meta`,
so nothing is fetched and no weight needs memory; the adapters are attached by peftly. Each count has a formula with the
sizes of the model, and a formula that gives another number is an error.
"""

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "parameter_counts.json"
HEADS = {"causal_lm": "causal LM", "seq2seq_lm": "encoder-decoder", "sequence_classification": "classifier, 2 labels"}
CONFIGS: dict[str, tuple[str, str, dict[str, int]]] = {
    "bloom-1b4": ("BloomConfig", "causal_lm", {"vocab_size": 46145, "hidden_size": 2048, "n_layer": 24, "n_head": 16}),
    "Llama-2-7B": ("LlamaConfig", "causal_lm", {}),
    "BERT-base": ("BertConfig", "sequence_classification", {}),
    "mt0-large": (
        "MT5Config",
        "seq2seq_lm",
        {"vocab_size": 250112, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    ),
}
"""Class of the configuration, task, and settings that differ from the defaults of the class. bloom-1b4 has the
vocabulary of its Chinese edition, bloom-1b4-zh."""
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("prompt_tuning", "20 virtual tokens", {}),
    ("prompt_tuning", "100 virtual tokens", {"num_virtual_tokens": 100}),
    ("p_tuning", "20 virtual tokens, MLP", {}),
    ("p_tuning", "20 virtual tokens, LSTM", {"encoder": "lstm"}),
    ("prefix_tuning", "20 virtual tokens", {}),
    ("prefix_tuning", "20 virtual tokens, projection", {"projection": True}),
    ("p_tuning_v2", "20 virtual tokens", {}),
    ("p_tuning_v2", "100 virtual tokens", {"num_virtual_tokens": 100}),
    ("adapter", "houlsby, width / 16", {}),
    ("adapter", "pfeiffer, width / 16", {"placement": "pfeiffer"}),
    ("lora", "rank 8, all linear layers", {}),
    ("lora", "rank 8, layers of query and value", {"target_modules": "QUERY_VALUE"}),
    ("lora", "rank 16, all linear layers", {"rank": 16}),
    ("dora", "rank 8, all linear layers", {}),
    ("dora", "rank 8, layers of query and value", {"target_modules": "QUERY_VALUE"}),
    ("ia3", "keys, values, feed-forward", {}),
    ("bitfit", "all biases", {}),
    ("selective", "last 2 blocks", {}),
    ("full", "everything", {}),
]
"""Method, its settings in words, and its settings that differ from the defaults."""
QUERY_VALUE = {
    "bloom-1b4": ("query_key_value",),
    "Llama-2-7B": ("q_proj", "v_proj"),
    "BERT-base": ("query", "value"),
    "mt0-large": ("q", "v"),
}
"""Layers that PEFT adapts by default, in which Bloom has query, key and value in one."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Count:
    """Formula with the sizes of a model, as text, and the number that it gives."""

    text: str
    value: int

    def __add__(self, other: "Count") -> "Count":
        texts = [text for text in (self.text, other.text) if text]
        return Count(" + ".join(texts), self.value + other.value)

    def __mul__(self, other: "Count") -> "Count":
        texts = [f"({count.text})" if " + " in count.text else count.text for count in (self, other)]
        return Count(" · ".join(texts), self.value * other.value)


def product(*factors: int) -> Count:
    """Return the count of a product."""
    return Count(" · ".join(f"{factor:,}" for factor in factors), prod(factors))


def summed(counts: Mapping[str, int]) -> Count:
    """Return the sum of the counts of modules: equal sums of blocks are one product, other modules are a summand each.

    Args:
        counts: counts, by the path of a module; the block of a module is its path up to the first number.
    """
    sums: dict[str, int] = {}
    for path, count in counts.items():
        block = re.match(r".*?\.\d+\.", path)
        sums[block[0] if block else path] = sums.get(block[0] if block else path, 0) + count
    found = Count("", 0)
    for _, group in itertools.groupby(sums.items(), lambda item: (re.sub(r"\d+", "", item[0]), item[1])):
        values = [value for _, value in group]
        found += product(len(values), values[0]) if len(values) > 1 else product(values[0])
    return found


class Model:
    """A model on the meta device.

    Args:
        name: name of the model in `CONFIGS`.
        task: task of its head; None: that of `CONFIGS`.
    """

    def __init__(self, name: str, task: str | None = None) -> None:
        self.name, self.task = name, task or CONFIGS[name][1]
        self.model = skeleton(name, self.task, None)
        self.config = self.model.config

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return int(self.config.hidden_size)

    @property
    def blocks(self) -> int:
        """Number of blocks of the stack that reads a prefix."""
        return int(self.config.num_hidden_layers)

    @property
    def key_width(self) -> int:
        """Key heads x head_dim."""
        heads = getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads
        return int(heads) * int(getattr(self.config, "d_kv", None) or self.width // self.config.num_attention_heads)

    @property
    def head(self) -> Count:
        """Parameters of a classifier's head, which every method trains."""
        from peftly.injection import task_modules

        modules = task_modules(self.model) if self.task == "sequence_classification" else []
        sizes = (parameter.numel() for path in modules for parameter in self.model.get_submodule(path).parameters())
        return sum((product(size) for size in sizes), Count("", 0))

    def features(self, targets: Any, *, inputs: bool = False) -> Count:
        """Return the sum of the outputs, or of outputs and inputs, over linear layers."""
        from peftly.injection import features, find_targets

        layers = find_targets(self.model, targets)
        return summed({path: sum(features(layer)) if inputs else features(layer)[0] for path, layer in layers.items()})

    def parameters_of(self, select: Callable[[str, Any], bool]) -> Count:
        """Return the number of the parameters that are selected by the path of their module, and the parameter."""
        sizes: dict[str, int] = {}
        for name, parameter in self.model.named_parameters():
            if select(name, parameter):
                sizes[name] = parameter.numel()
        return summed(sizes)

    def norms(self) -> Count:
        """Return the number of the parameters of all normalisation layers."""
        from peftly.injection import norm_layers

        paths = set(norm_layers(self.model))
        return self.parameters_of(lambda name, _: name.rpartition(".")[0] in paths)


def _prompt(model: Model, config: Any) -> Count:
    return product(config.num_virtual_tokens, model.width)


def _p_tuning(model: Model, config: Any) -> Count:
    width = model.width
    hidden = width  # the default
    inputs = product(config.num_virtual_tokens, width)
    if config.encoder == "mlp":
        return inputs + product(3) * (product(width, width) + product(width))
    lstm = product(8, hidden) * product(width + hidden + 2) + product(8, hidden) * product(3 * hidden + 2)
    return inputs + lstm + product(2, hidden, 2 * hidden + 1) + product(width, 2 * hidden + 1)


def _prefix(model: Model, config: Any) -> Count:
    length, total = config.num_virtual_tokens, 2 * model.blocks * model.key_width
    if not config.projection:
        return product(length, 2, model.blocks, model.key_width)
    width = model.key_width  # also the default of the hidden dimension
    return product(length, width) + product(width, width + 1) + product(total, width + 1)


def _bottlenecks(model: Model, config: Any) -> Count:
    width, inner = model.width, model.width // 16
    sublayers = {"houlsby": 2, "pfeiffer": 1}[config.placement] * model.blocks
    if model.config.is_encoder_decoder:  # the decoder has a second attention
        sublayers = {"houlsby": 5, "pfeiffer": 2}[config.placement] * model.blocks
    size = product(2, inner, width) + product(inner) + product(width)
    return product(sublayers) * size + (model.norms() if config.placement == "houlsby" else Count("", 0))


def _lora(model: Model, config: Any) -> Count:
    return product(config.rank) * model.features(config.target_modules, inputs=True)


def _dora(model: Model, config: Any) -> Count:
    return _lora(model, config) + model.features(config.target_modules)


def _ia3(model: Model, config: Any) -> Count:
    from peftly.injection import features, find_part

    outputs = {path: features(layer)[0] for path, layer in find_part(model.model, "keys and values").items()}
    inputs = {path: features(layer)[1] for path, layer in find_part(model.model, "feed-forward output").items()}
    order = {path: index for index, (path, _) in enumerate(model.model.named_modules())}
    return summed(dict(sorted((outputs | inputs).items(), key=lambda item: order[item[0]])))


def _bitfit(model: Model, config: Any) -> Count:
    heads = [name for name in ("classifier", "score") if hasattr(model.model, name)]
    return model.parameters_of(lambda name, _: name.endswith(".bias") and name.partition(".")[0] not in heads)


def _selective(model: Model, config: Any) -> Count:
    last = {str(model.blocks - 1 - index) for index in range(config.last_layers)}

    def is_last(name: str, _: Any) -> bool:
        number = re.search(r"\.(\d+)\.", name)
        return number is not None and number[1] in last

    return model.parameters_of(is_last)


def _full(model: Model, config: Any) -> Count:
    return product(sum(parameter.numel() for parameter in model.model.parameters()))


FORMULAS: dict[str, Callable[[Model, Any], Count]] = {
    "prompt_tuning": _prompt,
    "p_tuning": _p_tuning,
    "prefix_tuning": _prefix,
    "p_tuning_v2": _prefix,
    "adapter": _bottlenecks,
    "lora": _lora,
    "dora": _dora,
    "ia3": _ia3,
    "bitfit": _bitfit,
    "selective": _selective,
    "full": _full,
}
"""Formula of each method, without the head of a classifier."""


@cache
def opened(name: str, task: str | None = None) -> Model:
    """Return a model, made once."""
    return Model(name, task)


def counts(name: str) -> Iterator[Result]:
    """Yield the count of each case on a model.

    Raises:
        ValueError: a formula gives another number than the attached adapter has.
    """
    import peftly
    from peftly.adapters.attachment import attach_without_values

    for method, words, settings in CASES:
        model = opened(name, "sequence_classification" if method == "p_tuning_v2" else None)
        given = {key: QUERY_VALUE[name] if value == "QUERY_VALUE" else value for key, value in settings.items()}
        config = peftly.METHODS[method].config(**given)
        found: Result = {"model": name, "method": method, "settings": words, "task": model.task}
        try:
            attach_without_values(model.model, config)
        except peftly.MethodError as error:
            yield found | {"reason": str(error)}
            continue
        trained = sum(parameter.numel() for parameter in peftly.trainable_parameters(model.model).values())
        total = sum(parameter.numel() for parameter in model.model.parameters())
        peftly.detach(model.model)
        formula = FORMULAS[method](model, config)
        if method != "full":
            formula += model.head
        if formula.value != trained:
            raise ValueError(f"{method} on {name}: {formula.text} = {formula.value:,}, and {trained:,} are trained")
        yield found | {"formula": formula.text, "trained": trained, "total": total}


def skeleton(name: str, task: str, quantization: Any) -> Any:
    """Return a model in bfloat16 without weights."""
    import torch
    import transformers

    from peftly.models import Head, open_skeleton, resolve_base

    config_name, _, settings = CONFIGS[name]
    head = Head(task, ("0", "1") if task == "sequence_classification" else ())
    with tempfile.TemporaryDirectory() as folder:
        getattr(transformers, config_name)(**settings).save_pretrained(folder)
        spec = resolve_base(folder)
        return open_skeleton(spec, dtype=torch.bfloat16, head=head, quantization=quantization)


def base_bytes(name: str, quantization: Any) -> int:
    """Return the bytes of a model's parameters in bfloat16, or with quantised linear layers and their scales."""
    size = 0
    for parameter in skeleton(name, CONFIGS[name][1], quantization).parameters():
        size += parameter.nbytes
        if state := getattr(parameter, "quant_state", None):
            parts = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            size += sum(part.nbytes for part in parts)
    return size


def measure() -> dict[str, Any]:
    """Return all counts, and the bytes of each model with and without quantisation."""
    from peftly import Quantization

    models = {}
    for name, (config, task, settings) in CONFIGS.items():
        sizes = {"bfloat16": base_bytes(name, None), "nf4": base_bytes(name, Quantization(kind="nf4"))}
        parameters = _full(opened(name), None).value
        models[name] = {"config": config, "settings": settings, "task": task, "parameters": parameters, "bytes": sizes}
    return {"models": models, "results": [found for name in CONFIGS for found in counts(name)]}


def read() -> dict[str, Any]:
    """Return the stored counts."""
    content: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def main() -> None:
    """Write the JSON."""
    RESULTS.write_text(json.dumps(measure(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
