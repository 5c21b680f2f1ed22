"""Size of the vocabulary in the files of a base, which `resize_token_embeddings` may have changed since."""

from typing import Any

from torch import nn

from peftly.injection import base_modules
from peftly.models.identity import rows_when_opened
from peftly.utils import quiet

__all__ = ["vocabulary_in_files"]


def vocabulary_in_files(model: Any) -> int | None:
    """Return the number of embeddings that the files of a base have; None where they are not known.

    Args:
        model: transformers model with an input embedding.
    """
    embedding: nn.Module = model.get_input_embeddings()
    path = next((path for path, module in base_modules(model) if module is embedding), "")
    rows = rows_when_opened(model, f"{path}.weight")
    return rows if rows is not None else _size_in_config(model)


def _size_in_config(model: Any) -> int | None:
    """Return the size in the `config.json` of a base that transformers opened, which is here or in its cache."""
    import transformers

    name = getattr(model, "name_or_path", "")
    if not name:
        return None
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
            size = getattr(config.get_text_config(), "vocab_size", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the files are gone, or those of another tool
        return None
    return size if isinstance(size, int) else None
