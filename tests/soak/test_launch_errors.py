"""An error of a run in several processes is printed once."""

import pytest
from commands import command, environment
from launches import ended, launch


@pytest.mark.soak
def test_an_error_of_all_processes_is_printed_once(tmp_path):
    ends = ended(launch(command("train", "--out", tmp_path, "--set", "train.rate=1"), 4, **environment()))
    assert [code for code, *_ in ends] == [2, 2, 2, 2]
    assert "".join(error for *_, error in ends).count("error: ") == 1
    assert not any(out for _, out, _ in ends)
    assert not any(tmp_path.iterdir())
