"""Import of bitsandbytes, which is optional, and the block size of its 4-bit weights."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

__all__ = ["blocks_of_size", "has_bitsandbytes", "import_bitsandbytes", "without_kernels"]


def has_bitsandbytes() -> bool:
    """Return whether bitsandbytes is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def import_bitsandbytes() -> Any:
    """Import bitsandbytes without downloads, and return the module.

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    with without_kernels():
        return importlib.import_module("bitsandbytes")


@contextmanager
def without_kernels() -> Iterator[None]:
    """Prevent downloads by an import of bitsandbytes inside the block.

    If the package `kernels` is installed, bitsandbytes uses this package to download binaries from the Hub.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    logger, kernels = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = logger.level
    logger.setLevel(logging.ERROR)  # bitsandbytes recommends to install `kernels`
    sys.modules["kernels"] = None  # type: ignore[assignment] # makes `import kernels` fail
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


@contextmanager
def blocks_of_size(size: int) -> Iterator[None]:
    """Quantise 4-bit weights that are loaded inside the block in blocks of `size` weights, which share a scale.

    transformers has no setting for the block size and constructs the weights with the default of bitsandbytes.
    """
    modules = importlib.import_module("bitsandbytes.nn.modules")
    with patch.object(modules, "Params4bit", partial(modules.Params4bit, blocksize=size)):
        yield
