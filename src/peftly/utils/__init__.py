"""Tools that know nothing about adapters. May import: `errors`.

formatting   numbers as people read them
atomic       a file or folder that appears whole or not at all
signals      Ctrl-C, held back while weights change
hardware     devices and dtypes
environment  versions, caches and the name of the program
quiet        log lines and progress bars of other libraries
"""

from peftly.utils.atomic import _says_full, check_place, full_disk, nearest, whole
from peftly.utils.environment import automatic_dtype, cache_folders, cache_home, environment, program
from peftly.utils.formatting import bytes_text, count_text, score_rows, score_text, seconds_text, share_text
from peftly.utils.hardware import resolve_device, resolve_dtype
from peftly.utils.quiet import quiet
from peftly.utils.signals import interruptions_held

__all__ = [
    "_says_full",
    "automatic_dtype",
    "bytes_text",
    "cache_folders",
    "cache_home",
    "check_place",
    "count_text",
    "environment",
    "full_disk",
    "interruptions_held",
    "nearest",
    "program",
    "quiet",
    "resolve_device",
    "resolve_dtype",
    "score_rows",
    "score_text",
    "seconds_text",
    "share_text",
    "whole",
]
