"""Tools that know nothing about adapters. May import: `errors`.

formatting     numbers as text
atomic         files and folders that appear complete or not at all
output_folder  check of a folder before a command writes into it
signals        Ctrl-C, delayed while weights change
hardware       devices and dtypes
environment    versions, caches and the name of the program
quiet          log lines and progress bars of other libraries
"""

from peftly.utils.atomic import (
    folder_bytes,
    is_disk_full,
    json_values,
    says_disk_full,
    write_folder,
    write_json,
    write_text,
)
from peftly.utils.environment import automatic_dtype, cache_folders, cache_home, environment, program
from peftly.utils.formatting import bytes_text, count_text, score_rows, score_text, seconds_text, share_text
from peftly.utils.hardware import resolve_device, resolve_dtype
from peftly.utils.output_folder import check_output_folder, nearest_existing_parent
from peftly.utils.quiet import quiet
from peftly.utils.signals import interruptions_held

__all__ = [
    "automatic_dtype",
    "bytes_text",
    "cache_folders",
    "cache_home",
    "check_output_folder",
    "count_text",
    "environment",
    "folder_bytes",
    "interruptions_held",
    "is_disk_full",
    "json_values",
    "nearest_existing_parent",
    "program",
    "quiet",
    "resolve_device",
    "resolve_dtype",
    "says_disk_full",
    "score_rows",
    "score_text",
    "seconds_text",
    "share_text",
    "write_folder",
    "write_json",
    "write_text",
]
