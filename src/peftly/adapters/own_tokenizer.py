"""The tokenizer, chat template and generation settings in the folder of an adapter, which go before those of its base.

Trainers save the tokenizer beside the adapter, with tokens that were added and a chat template that was set.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.adapters.files import escaped, read_json
from peftly.errors import AdapterError, PeftlyError
from peftly.models import WHEEL_BASES, load_tokenizer
from peftly.utils import quiet, sync

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

__all__ = [
    "TOKENIZER_FILES",
    "chat_template_in",
    "generation_settings",
    "own_tokenizer",
    "tokenizer_size",
    "tokenizer_to_save",
    "tokenizers_differ",
    "write_tokenizer",
]

_CONFIG, _TEMPLATE, _ADDED = "tokenizer_config.json", "chat_template.jinja", "added_tokens.json"
_SPECIAL, _GENERATION = "special_tokens_map.json", "generation_config.json"
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files of which a whole tokenizer has at least one."""

TOKENIZER_FILES = (*_VOCABULARIES, "merges.txt", _CONFIG, _TEMPLATE, _ADDED, _SPECIAL, _GENERATION)
"""Files of a tokenizer, and those with which it changes the texts that the model writes."""

_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def own_tokenizer(folder: Path, base: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer in the folder of an adapter; None: the adapter has the tokenizer of its base.

    A folder may hold parts only, such as a chat template: then the rest is that of the base.

    Args:
        folder: folder of the adapter.
        base: tokenizer of the base, which does not change.

    Raises:
        AdapterError: the files cannot be opened.
    """
    try:
        if any((folder / name).is_file() for name in _VOCABULARIES):
            tokenizer = _opened(folder, base)
        elif any((folder / name).is_file() for name in (_CONFIG, _TEMPLATE, _ADDED, _SPECIAL)):
            tokenizer = _overlaid(folder, copy.deepcopy(base))
        else:
            return None
    except AdapterError:
        raise
    except Exception as error:  # of any library that reads one of the many kinds of tokenizers
        reason = escaped(" ".join(str(error).split()))
        raise AdapterError(
            f"the tokenizer in {folder} cannot be opened: {reason}; copy its files again, or delete them to use the "
            "tokenizer of the base"
        ) from error
    tokenizer.name_or_path = str(folder)
    return tokenizer


def _opened(folder: Path, base: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a whole tokenizer. Special tokens that its files do not name are those of the base, if it has them."""
    import transformers

    with quiet():
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    vocabulary = tokenizer.get_vocab()
    for name in _TOKENS if not (folder / _CONFIG).is_file() else ("pad_token",):
        if getattr(tokenizer, name) is None and getattr(base, name) in vocabulary:
            setattr(tokenizer, name, getattr(base, name))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template and not (folder / _CONFIG).is_file():
        tokenizer.chat_template = base.chat_template
    return tokenizer


def _overlaid(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the base with the tokens and the chat template that the folder of an adapter names."""
    config, special = _json(folder / _CONFIG), _json(folder / _SPECIAL)
    for number, token in sorted(_added_tokens(config, _json(folder / _ADDED))):
        tokenizer.add_tokens([token])
        if tokenizer.convert_tokens_to_ids(str(token)) != number:
            raise AdapterError(
                f"{folder} adds the token {escaped(token)} with the id {number}, and in the tokenizer of the base it "
                f"has the id {tokenizer.convert_tokens_to_ids(str(token))}; copy the whole tokenizer to the folder"
            )
    for name, value in {**config, **special}.items():
        if name in _TOKENS and value is not None:
            setattr(tokenizer, name, value["content"] if isinstance(value, dict) else value)
    listed = config.get("chat_template")
    named = {one["name"]: one["template"] for one in listed} if isinstance(listed, list) else None
    tokenizer.chat_template = chat_template_in(folder) or named or tokenizer.chat_template
    return tokenizer


def chat_template_in(folder: Path) -> str | None:
    """Return the chat template in the folder of an adapter; None: there is none, or several by name.

    Raises:
        AdapterError: the file cannot be read.
    """
    file = folder / _TEMPLATE
    try:
        template = file.read_text(encoding="utf-8") if file.is_file() else _json(folder / _CONFIG).get("chat_template")
    except (OSError, UnicodeError) as error:
        raise AdapterError(f"{file} cannot be read: {escaped(error)}") from None
    return template if isinstance(template, str) else None


def _added_tokens(config: dict[str, Any], added: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Yield the ids and the added tokens that two files of a tokenizer name."""
    from tokenizers import AddedToken

    described = {int(number): value for number, value in config.get("added_tokens_decoder", {}).items()}
    yield from ((number, AddedToken(**value)) for number, value in described.items())
    yield from ((int(number), AddedToken(token)) for token, number in added.items() if int(number) not in described)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def generation_settings(folder: Path) -> GenerationConfig | None:
    """Return the settings of `generate` in the folder of an adapter, such as the tokens that end a text; often None.

    Raises:
        AdapterError: the file cannot be read.
    """
    import transformers

    if not (folder / _GENERATION).is_file():
        return None
    try:
        with quiet():
            settings: GenerationConfig = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = escaped(" ".join(str(error).split()))
        raise AdapterError(f"{folder / _GENERATION} cannot be read: {reason}") from error
    return settings


def tokenizers_differ(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers have other tokens, special tokens or chat templates, or split texts differently."""
    return first is not second and _facts(first) != _facts(second)


def _facts(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    added = {number: (str(token), token.special) for number, token in tokenizer.added_tokens_decoder.items()}
    tokens = [getattr(tokenizer, name) for name in _TOKENS if name != "pad_token"]
    splitting = (
        None
        if backend is None
        else [str(getattr(backend, part)) for part in ("normalizer", "pre_tokenizer", "post_processor")]
    )
    return tokenizer.get_vocab(), added, tokens, tokenizer.chat_template, splitting


def tokenizer_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of embeddings that a tokenizer needs: the largest id of a token, plus one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def write_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase | None, settings: GenerationConfig | None = None
) -> None:
    """Write a tokenizer and settings of generation, if there are any, to a new folder of an adapter, and sync them."""
    before = set(folder.rglob("*"))
    with quiet():
        for written in filter(None, (tokenizer, settings)):
            written.save_pretrained(folder)
    for path in {*folder.rglob("*")} - before:
        sync(path)


def tokenizer_to_save(model: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """Return a tokenizer that an adapter is to be saved with; None: it is that of the base, or the base is not known.

    Args:
        model: base of the adapter.
        tokenizer: tokenizer with which the adapter is trained.
    """
    import transformers

    name = getattr(model, "name_or_path", "")
    try:
        if name in WHEEL_BASES or Path(name or "?").exists():
            base = load_tokenizer(name)
        else:
            with quiet():
                base = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (PeftlyError, OSError, ValueError):
        return None
    return tokenizer if tokenizers_differ(tokenizer, base) else None
