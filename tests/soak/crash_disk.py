"""A record of what one command leaves on a disk at every moment, for kills and for power cuts.

The command runs once, in a process of its own. Before each file operation that Python makes below a folder, the state
of the disk is noted three times:

kill       every operation so far is on the disk: what another process sees after a kill;
contents   as `kill`, but a file has the content of its last fsync, and is empty without one: a power cut on a file
           system that writes names before contents;
names      as `contents`, and a folder has the files that it had at its last fsync: a power cut that loses renames.
"""

import hashlib
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from peftly.report import run_page

Tree = dict[str, str | None]
"""Files by relative path, each with the hash of its content; None: a folder."""

MODELS = ("kill", "contents", "names")
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NOTHING = hashlib.sha256(b"").hexdigest()


class KilledError(AssertionError):
    """A copy of this process was ended by a signal, whose number is the argument."""


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a copy of this process, so that nothing it does to the process stays."""
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            try:
                _begin_copy()
                try:
                    pickle.dump((True, function(*arguments)), answer)
                except BaseException:  # noqa: BLE001
                    pickle.dump((False, traceback.format_exc()), answer)
                answer.flush()
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code < 0:
            raise KilledError(-code)
        answer.seek(0)
        worked, value = pickle.load(answer)
    assert worked, value
    return value


def _begin_copy() -> None:
    # The threads of the tokenizers' library are not in the copy, which would wait for them for ever.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # in the first thread: transformers starts several, which all would do it
    run_page.line_chart = lambda *_, **__: ""  # a third of the time of a run


def forked_away(function: Callable[[], Any]) -> int:
    """Call a function in a copy of this process, and return the number of that process at once."""
    child = os.fork()
    if child == 0:
        try:
            _begin_copy()
            function()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def exit_code(function: Callable[[], Any]) -> int:
    """Call a function in a copy of this process, and return how that ended: 0, a code, or minus a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(forked_away(function), 0)[1])


def changes_below(root: Path, event: str, arguments: tuple[Any, ...]) -> str | None:
    """Return the path, relative to `root`, of the file that an audit event is about to change; None: none there."""
    if event not in CHANGES:
        return None
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
        return None
    if isinstance(arguments[0], int) or arguments[0] is None:  # an open file
        return None
    path = os.fsdecode(arguments[0])
    at = next((item for item in arguments[1:] if isinstance(item, int) and item > 2), None)
    if event in ("os.remove", "os.rmdir") and at is not None:
        path = os.path.join(Path(f"/proc/self/fd/{at}").readlink(), path)  # noqa: PTH118
    path = os.path.abspath(path)  # noqa: PTH100 - links stay
    return os.path.relpath(path, root) if path.startswith(f"{root}/") else None


def at_times(times: range, action: Callable[[], None]) -> Callable[[], None]:
    """Return a function that runs an action at some of its calls, which are counted from 0."""
    count = iter(range(sys.maxsize))

    def call() -> None:
        if next(count) in times:
            action()

    return call


def at_file_operations(root: Path, call: Callable[[], None], events: tuple[str, ...] | None = None) -> None:
    """From now on call a function before each file operation below a folder, in this process."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (events is None or event in events) and changes_below(root, event, arguments) is not None:
            call()

    sys.addaudithook(hook)


def kill_before(command: Callable[[], Any], root: Path, number: int) -> None:
    """Run a command in a process that ends with SIGKILL before a file operation, counted from 0."""

    def run() -> None:
        at_file_operations(root, at_times(range(number, number + 1), lambda: os.kill(os.getpid(), signal.SIGKILL)))
        command()

    assert exit_code(run) == -signal.SIGKILL


@dataclass
class Record:
    """The states of a disk during a command.

    Attributes:
        moments: name of each file operation with the states just before it; the last one is the end of the command.
        contents: contents of files by their hashes.
        result: what the command returned.
    """

    moments: list[tuple[str, dict[str, Tree]]] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=lambda: {_NOTHING: b""})
    result: Any = None

    def states(self, *models: str) -> dict[tuple[Any, ...], tuple[str, Tree]]:
        """Return the different states under some models, each with the name of the first moment it belongs to."""
        found: dict[tuple[Any, ...], tuple[str, Tree]] = {}
        for index, (name, states) in enumerate(self.moments):
            for model in models:
                tree = states[model]
                found.setdefault(tuple(sorted(tree.items(), key=str)), (f"{model} {index}: {name}", tree))
        return found

    def write(self, tree: Tree, root: Path) -> None:
        """Make a folder with the files of a state."""
        root.mkdir(parents=True, exist_ok=True)
        for name, content in tree.items():
            path = root / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.contents[content])


def record(root: Path, command: Callable[[], Any]) -> Record:
    """Run a command in another process, and return the states of `root` on the way."""
    return forked(_record, root, command)


def _record(root: Path, command: Callable[[], Any]) -> Record:
    recorder = _Recorder(root)
    sys.addaudithook(recorder.before)
    os.fsync = recorder.fsync
    recorder.record.result = command()
    recorder.note("end")
    recorder.busy = True
    return recorder.record


class _Recorder:
    def __init__(self, root: Path) -> None:
        self.root, self.record, self.busy = root, Record(), False
        self.fsync_of_the_system = os.fsync
        self.held: dict[int, int] = {}
        """An open descriptor for each inode that was seen, so that no number is used again."""
        self.synced_files: dict[int, str] = {}
        self.synced_folders: dict[int, dict[str, tuple[int, bool]]] = {}
        for path in (root, *root.rglob("*")):
            self._sync(path)

    def before(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy or event not in CHANGES:
            return
        self.busy = True
        try:
            name = changes_below(self.root, event, arguments)
            if name is not None:
                self.note(f"{event} {name}")
        finally:
            self.busy = False

    def fsync(self, file: Any) -> None:
        self.fsync_of_the_system(file)
        descriptor = file if isinstance(file, int) else file.fileno()
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path == self.root or path.is_relative_to(self.root):
            self._sync(path)

    def note(self, name: str) -> None:
        """Note the present states. An interval without a change is noted once."""
        kill: Tree = {}
        contents: Tree = {}
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root).as_posix()
            inode = self._hold(path)
            kill[relative] = contents[relative] = None
            if not path.is_dir():
                kill[relative] = self._content(path)
                contents[relative] = self.synced_files.get(inode, _NOTHING)
        names: Tree = {}
        self._add_names(self._hold(self.root), "", names)
        self.record.moments.append((name, {"kill": kill, "contents": contents, "names": names}))

    def _add_names(self, folder: int, prefix: str, tree: Tree) -> None:
        for name, (inode, is_folder) in self.synced_folders.get(folder, {}).items():
            tree[prefix + name] = None if is_folder else self.synced_files.get(inode, _NOTHING)
            if is_folder:
                self._add_names(inode, f"{prefix}{name}/", tree)

    def _sync(self, path: Path) -> None:
        busy, self.busy = self.busy, True
        inode = self._hold(path)
        if path.is_dir():
            self.synced_folders[inode] = {entry.name: (self._hold(entry), entry.is_dir()) for entry in path.iterdir()}
        else:
            self.synced_files[inode] = self._content(path)
        self.busy = busy

    def _content(self, path: Path) -> str:
        content = path.read_bytes()
        key = hashlib.sha256(content).hexdigest()
        self.record.contents.setdefault(key, content)
        return key

    def _hold(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self.held:
            self.held[inode] = os.open(path, os.O_RDONLY)
        return inode
