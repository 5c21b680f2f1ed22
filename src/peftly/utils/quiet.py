"""A context that hides log lines and progress bars of other libraries."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Hide log lines and loading bars of transformers and accelerate inside the block. Download bars stay visible."""
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    has_hub_bars = not are_progress_bars_disabled()
    accelerate_logger = logging.getLogger("accelerate")
    accelerate_level = accelerate_logger.level
    transformers_logging.set_verbosity_error()
    accelerate_logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # this disables the bars of the Hub, too
    if has_hub_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        accelerate_logger.setLevel(accelerate_level)
        if has_bars:
            transformers_logging.enable_progress_bar()  # this enables the bars of the Hub, too
        if not has_hub_bars:
            disable_progress_bars()
