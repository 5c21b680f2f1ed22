"""Thousands of damaged and hostile checkpoints: a training continues, or refuses in one line."""

import os

import pytest
from checkpoint_fuzz import CheckpointFuzzer

INPUTS = int(os.environ.get("PEFTLY_FUZZ_INPUTS", "10000"))


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_changed_checkpoints_raise_only_our_errors(tmp_path, capsys):
    fuzzer = CheckpointFuzzer(tmp_path)
    for seed in range(INPUTS):
        fuzzer.run(seed)
    with capsys.disabled():
        print(f"\n{INPUTS} changed checkpoints: {dict(fuzzer.outcomes.most_common())}")
    assert fuzzer.outcomes.keys() == {"ok", "ConfigError", "TrainingError"}
