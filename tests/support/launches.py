"""Several processes of one training, started as a launcher starts them."""

import os
import socket
import subprocess
from collections.abc import Sequence


def launch(command: Sequence[str], count: int = 2, **variables: str) -> list[subprocess.Popen[str]]:
    """Start processes that find each other, without the seconds that `torchrun` itself takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **variables, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in map(str, range(count))
    ]


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for processes, and return the exit code and the output of each."""
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
