"""The folder in which peftly caches bases and stores large data."""

import os
from pathlib import Path

from platformdirs import user_cache_dir

__all__ = ["cache_home"]


def cache_home() -> Path:
    """Return the folder that caches downloaded bases: `$PEFTLY_HOME`, or a folder in the user's cache."""
    return Path(os.environ.get("PEFTLY_HOME") or user_cache_dir("peftly")).expanduser()
