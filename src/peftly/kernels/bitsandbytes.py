"""bitsandbytes, which need not be installed: how it is imported, and what transformers does not tell it."""

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
    """Whether it is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def import_bitsandbytes() -> Any:
    """Return bitsandbytes, which fetches nothing."""
    with without_kernels():
        return importlib.import_module("bitsandbytes")


@contextmanager
def without_kernels() -> Iterator[None]:
    """Keep bitsandbytes from fetching binaries from the Hub when it is imported: it does if `kernels` is installed."""
    if "bitsandbytes" in sys.modules:
        yield
        return
    logger, kernels = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would ask for that package
    sys.modules["kernels"] = None  # type: ignore[assignment] # the way to say that there is no such module
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


@contextmanager
def blocks_of_size(size: int) -> Iterator[None]:
    """Let 4-bit weights that are loaded inside the block share a scale among `size` of them.

    transformers has no setting for it: it makes layers with bitsandbytes' default, and quantises by what they say.
    """
    modules = importlib.import_module("bitsandbytes.nn.modules")
    with patch.object(modules, "Params4bit", partial(modules.Params4bit, blocksize=size)):
        yield
