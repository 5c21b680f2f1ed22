"""The start of the command line: its duration, its imports, its help."""

import os
import resource
import subprocess
import sys

import pytest
from commands import commands_of, environment, peftly_apart

from peftly.cli import app

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "numpy", "jinja2", "huggingface_hub")
UNUSED = ("datasets", "pandas", "pyarrow", "sklearn", "peft", "bitsandbytes", "torchvision", "matplotlib")
UNUSED += ("torch._inductor.compile_fx",)


def test_help_takes_less_than_half_a_second():
    """The time of the processor, which other processes of the machine hardly change."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        outcome = peftly_apart("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert outcome.code == 0
    assert min(seconds) < 0.5, seconds
    for command in commands_of(app):
        assert command in outcome.out


@pytest.mark.parametrize(("variables", "spins"), [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_idle_threads_do_not_spin_for_long(variables, spins, peftly, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert peftly("methods").code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_help_and_methods_import_nothing_heavy():
    code = (
        "import sys\nfrom peftly.cli import app\n"
        "for args in (['--help'], ['train', '--help'], ['quickstart', '--help'], ['methods']):\n"
        "    try:\n        app(args, prog_name='peftly')\n    except SystemExit as end:\n        assert not end.code\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert outcome.stdout.splitlines()[-1:] == ["heavy: []"], outcome


def test_generate_imports_what_it_needs(tiny_llama_folder):
    """transformers imports these libraries where a name of one of its modules is needed, in up to 1.4 s."""
    code = (
        "import gc, sys\nfrom peftly.cli import app\n"
        f"try:\n    app(['generate', '--base', {str(tiny_llama_folder)!r}, '--prompt', 'a', '--max-new-tokens', '1'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        f"print('heavy:', [name for name in {UNUSED!r} if name in sys.modules])\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert outcome.stdout.splitlines()[-2:] == ["heavy: []", "True True"], outcome


def test_version():
    import peftly as package

    outcome = peftly_apart("--version")
    assert (outcome.code, outcome.out) == (0, f"peftly {package.__version__}\n")


def test_without_a_command_the_help_is_shown():
    outcome = peftly_apart()
    assert (outcome.code, outcome.err) == (0, "")
    assert "Usage" in outcome.out
