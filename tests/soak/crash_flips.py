"""Flipped bits: what peftly says about a file that one byte of which has changed."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from commands import peftly_here
from crash_cases import content, said

from peftly import load_base
from peftly.errors import PeftlyError
from peftly.runs import open_run

IDS = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])


def positions(size: int, count: int) -> list[int]:
    """Return positions of bytes: half of them near the beginning, where headers are, the others all over the file."""
    first = range(min(size, count // 2))
    return sorted({*first, *(number * size // count for number in range(count))} if size else ())


def flips(folder: Path, count: int) -> Iterator[tuple[str, int, int]]:
    """Yield files below a folder with the positions and the bits to flip, at most `count` positions in a file."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            for index, position in enumerate(positions(path.stat().st_size, count)):
                yield path.relative_to(folder).as_posix(), position, index % 8


def flipped(folder: Path, name: str, position: int, bit: int, root: Path, use: Callable[[], Any], right: Any) -> str:
    """Flip a bit in a copy of a folder, and use it as `out` in the current folder.

    Returns:
        `same_bytes`, `one_line`, or `undetected` for another result without an error.
    """
    shutil.copytree(folder, root / "out")
    file = root / "out" / name
    changed = bytearray(file.read_bytes())
    changed[position] ^= 1 << bit
    file.write_bytes(changed)
    os.chdir(root)
    try:
        found = use()
    except PeftlyError as error:
        assert "\n" not in str(error), str(error)
        return "one_line"
    if found is None:
        return "one_line"
    found, expected = ({key: value for key, value in each.items() if key != name} for each in (found, right))
    return "same_bytes" if found == expected else "undetected"


def opened() -> dict[str, Any]:
    """Open an adapter or a run, and return what it computes and the row format."""
    run = open_run("out")
    with torch.no_grad():
        return {"logits": run.model(IDS).logits.tolist(), "rows": run.row_format and run.row_format.to_dict()}


def opened_model() -> dict[str, Any]:
    """Open a merged model, and return what it computes."""
    base = load_base("out")
    with torch.no_grad():
        return {"logits": base.model(IDS).logits.tolist(), "tokens": base.tokenizer("row 12")["input_ids"]}


def resumed() -> dict[str, Any] | None:
    """Continue a run, and return its files; None: one line said why not."""
    return None if said(peftly_here("train", "--resume", "out")) else content(Path("out"))


def result_of(folder: Path, use: Callable[[], Any], root: Path) -> Any:
    """Return what a folder gives without a flip."""
    shutil.copytree(folder, root / "out")
    os.chdir(root)
    return use()

