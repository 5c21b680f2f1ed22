"""Tools that know nothing about adapters. May import: `errors`.

formatting     numbers as text
file_changes   every change on a disk, one function for each kind
locks          one writer for each folder
transactions   files of a folder replaced together, or not at all
atomic         text files that appear complete or not at all
output_folder  check of a folder before a command writes into it, its mark, and writing all of it
signals        stop signals, delayed while weights change
simulated_memory  memory of a computation that is not run
random_states  global random generators, left as they were
hardware       devices, dtypes, and the memory of this process
environment    versions, caches and the name of the program
warning        warnings of the main process
quiet          log lines and progress bars of other libraries
"""

from peftly.utils.atomic import (
    folder_bytes,
    is_disk_full,
    json_text,
    json_values,
    says_disk_full,
    write_json,
    write_text,
)
from peftly.utils.environment import automatic_dtype, cache_folders, environment, is_main_process, program
from peftly.utils.file_changes import (
    append,
    delete_file,
    delete_folder,
    make_folder,
    move,
    sync,
    truncate,
    write_new_file,
    write_tensors,
)
from peftly.utils.formatting import (
    bytes_text,
    count_text,
    parameters_text,
    score_rows,
    score_text,
    seconds_text,
    share_text,
)
from peftly.utils.hardware import (
    available_memory,
    memory_of_process,
    peak_memory,
    reset_peak_memory,
    resolve_device,
    resolve_dtype,
    return_free_memory,
)
from peftly.utils.locks import LOCK, folder_lock
from peftly.utils.output_folder import (
    MARK,
    check_output_folder,
    mark_text,
    nearest_existing_parent,
    read_mark,
    write_folder,
)
from peftly.utils.quiet import quiet
from peftly.utils.random_states import same_random_states
from peftly.utils.signals import stops_held, stops_noted, stops_raised
from peftly.utils.simulated_memory import SimulatedMemory
from peftly.utils.transactions import (
    drop_earlier,
    earlier_files,
    has_earlier,
    is_scratch,
    recover,
    replacing_file,
    replacing_files,
    restore_earlier,
)
from peftly.utils.warning import warn

__all__ = [
    "LOCK",
    "MARK",
    "SimulatedMemory",
    "append",
    "automatic_dtype",
    "available_memory",
    "bytes_text",
    "cache_folders",
    "check_output_folder",
    "count_text",
    "delete_file",
    "delete_folder",
    "drop_earlier",
    "earlier_files",
    "environment",
    "folder_bytes",
    "folder_lock",
    "has_earlier",
    "is_disk_full",
    "is_main_process",
    "is_scratch",
    "json_text",
    "json_values",
    "make_folder",
    "mark_text",
    "memory_of_process",
    "move",
    "nearest_existing_parent",
    "parameters_text",
    "peak_memory",
    "program",
    "quiet",
    "read_mark",
    "recover",
    "replacing_file",
    "replacing_files",
    "reset_peak_memory",
    "resolve_device",
    "resolve_dtype",
    "restore_earlier",
    "return_free_memory",
    "same_random_states",
    "says_disk_full",
    "score_rows",
    "score_text",
    "seconds_text",
    "share_text",
    "stops_held",
    "stops_noted",
    "stops_raised",
    "sync",
    "truncate",
    "warn",
    "write_folder",
    "write_json",
    "write_new_file",
    "write_tensors",
    "write_text",
]
