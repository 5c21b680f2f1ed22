"""Keep the log lines and progress bars of other libraries off the screen."""

import logging as logs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep log lines and loading bars of transformers and accelerate off the screen. Bars of downloads stay."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars, hub_bars = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    spreading = logs.getLogger("accelerate")
    spreading_level = spreading.level
    logging.set_verbosity_error()
    spreading.setLevel(logs.ERROR)
    logging.disable_progress_bar()
    if hub_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        spreading.setLevel(spreading_level)
        if bars:
            logging.enable_progress_bar()  # the Hub's with them
        if not hub_bars:
            disable_progress_bars()
