"""Output of several processes: the main one speaks for all."""

import io
import warnings

import pytest
from rich.console import Console
from tiny import tiny_model

from peftly import LoRA, attach
from peftly.training.callbacks import ProgressBar
from peftly.training.run_log import RunLog
from peftly.utils import warn


@pytest.mark.parametrize(("rank", "count"), [("0", 1), ("1", 0), (None, 1)])
def test_the_main_process_warns(rank, count, monkeypatch):
    monkeypatch.delenv("RANK", raising=False) if rank is None else monkeypatch.setenv("RANK", rank)
    actions = (
        lambda: warn("a warning"),
        lambda: attach(tiny_model("llama"), LoRA(bias="all")),
        lambda: RunLog(out=None, is_main_process=rank != "1", resume=False).note("a note"),
    )
    for action in actions:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            action()
        assert len([warning for warning in caught if warning.category is UserWarning]) == count


def test_a_warning_names_the_line_of_the_caller():
    with pytest.warns(UserWarning, match="a warning") as caught:
        warn("a warning", stacklevel=1)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("rank", "shows"), [("0", True), ("1", False)])
def test_the_bar_of_another_process_writes_nothing(rank, shows, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    text = io.StringIO()
    with ProgressBar(Console(file=text, force_terminal=True, width=120)):
        pass
    assert bool(text.getvalue()) == shows
