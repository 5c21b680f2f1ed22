"""GGUF files with random damage: only errors of our own come out, in one line, in seconds, without much memory."""

import resource
import signal
import time

import pytest
from damaged_gguf import DamagedGguf, refusal, tiny_gguf

INPUTS = 10_000
SECONDS = 30
BYTES = 4 << 30


class SlowError(BaseException):
    """An input took longer than `SECONDS`; no handler of errors catches this class."""


@pytest.fixture
def _limits():
    """Limit the memory of this process to `BYTES` more than now, and the time of an input."""
    with open("/proc/self/statm") as opened:  # noqa: PTH123
        used = int(opened.read().split()[0]) * resource.getpagesize()

    def slow(*_):
        raise SlowError

    handler, limits = signal.signal(signal.SIGALRM, slow), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.soak
@pytest.mark.usefixtures("_limits")
def test_damaged_gguf_files(tmp_path, capsys):
    file = tmp_path / "tiny.gguf"
    sound, opened, slowest = DamagedGguf(tiny_gguf(file)), 0, 0.0
    for seed in range(INPUTS):
        file.write_bytes(sound.of(seed))
        started = time.perf_counter()
        signal.alarm(SECONDS)
        try:
            message = refusal(file)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            signal.alarm(0)
        assert "\n" not in (message or ""), f"seed {seed}"
        opened += message is None
        slowest = max(slowest, time.perf_counter() - started)
    with capsys.disabled():
        print(f"\n{INPUTS} GGUF files: {INPUTS - opened} refused, {opened} opened; slowest {slowest:.1f} s")
