"""The built wheel, installed in an empty environment, runs the quickstart: it holds the sample data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
def test_the_wheel_alone_runs_the_quickstart(tmp_path):
    def call(*words, **options):
        done = subprocess.run(list(map(str, words)), cwd=tmp_path, capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
        return done.stdout

    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    [wheel] = tmp_path.glob("peftly-*.whl")
    call(sys.executable, "-m", "venv", tmp_path / "alone")
    python = tmp_path / "alone" / "bin" / "python"
    constraints = ("--constraint", ROOT / "constraints.txt")
    call(python, "-m", "pip", "install", *constraints, "torch")
    call(python, "-m", "pip", "install", *constraints, wheel)
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = call(python, "-c", "import peftly; print(peftly.__file__)", env=outside)
    assert str(tmp_path / "alone") in found
    told = call(tmp_path / "alone" / "bin" / "peftly", "quickstart", "--limit", 8, "--epochs", 1, env=outside)
    assert "Next:" in told
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()
