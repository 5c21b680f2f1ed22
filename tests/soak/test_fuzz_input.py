"""Random configurations, data files and chat templates: only a result or a PeftlyError comes out."""

import copy

import pytest
from data_tokenizers import family
from fuzz import KINDS, fuzz

COUNT = 10_000


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of code that jinja makes
@pytest.mark.parametrize("kind", KINDS)
def test_only_our_own_errors_come_out(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("peftly.data.chat_template._MAX_SECONDS", 0.2)
    outcomes = fuzz(kind, COUNT, copy.deepcopy(family("byte_level")), tmp_path)
    assert outcomes["ok"] > COUNT / 100, outcomes
    assert outcomes["ok"] < COUNT, outcomes
