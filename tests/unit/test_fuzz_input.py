"""A sample of the random inputs of `make soak`."""

import copy

import pytest
from data_tokenizers import family
from fuzz import KINDS, fuzz


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of code that jinja makes
@pytest.mark.parametrize("kind", KINDS)
def test_only_our_own_errors_come_out(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("peftly.data.chat_template._MAX_SECONDS", 0.2)
    outcomes = fuzz(kind, 50, copy.deepcopy(family("byte_level")), tmp_path)
    assert outcomes.total() == 50
    assert len(outcomes) > 1, outcomes
