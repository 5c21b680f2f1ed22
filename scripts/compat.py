"""Run a smoke subset of the tests in fresh environments with other versions of the dependencies.

    make compat                                   # the oldest and the newest versions that pyproject.toml allows
    python scripts/compat.py beyond --torch 2.15.0

`oldest` installs the lower bounds of pyproject.toml, `newest` the newest versions within its bounds, and `beyond` the
newest on the index whatever the upper bounds say. Torch stays at the version of constraints.txt unless `--torch` names
another one: the newest torch of an index is often a CUDA build of several GB.
Each environment is made in a temporary folder, and removed afterwards.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOKE = (
    "tests/unit/test_public_names.py",
    "tests/unit/adapters/test_version_0_1_0.py",
    "tests/unit/injection",
    "tests/unit/models/test_loading.py",
    "tests/unit/training/test_train.py",
    "tests/unit/inference/test_generation.py",
    "tests/oracle/test_peft.py",
    "tests/properties/test_formulas.py",
    "tests/end_to_end/test_cli_commands.py",
)
"""One path through everything that touches other libraries: models, attention, caches, quantisation, the loop."""


def requirements() -> list[str]:
    """Return the dependencies of pyproject.toml, those for tests among them; llama.cpp would be built from source."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: extra for name, extra in project["optional-dependencies"].items() if name != "llama"}
    return [*project["dependencies"], *(one for extra in extras.values() for one in extra)]


def pinned(name: str) -> str:
    """Return the version of a package in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}==(\S+)$", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: constraints.txt has no {name}")
    return found.group(1)


def wanted(which: str, torch: str) -> list[str]:
    """Return the requirements for pip: the lower bounds, the requirements as they are, or the names alone."""
    chosen = [f"torch=={torch}"]
    for requirement in requirements():
        name = re.split(r"[<>=\[; ]", requirement)[0]
        if name in ("torch", "peftly"):
            continue
        # PEFT is the oracle: the tests compare with this one version.
        bound = re.search(r"(?:>=|==)\s*([\w.]+)", requirement)
        if bound and (which == "oldest" or "==" in requirement):
            chosen.append(f"{name}=={bound.group(1)}")
        else:
            chosen.append(requirement if which == "newest" else name)
    return list(dict.fromkeys(chosen))


def run(which: str, torch: str) -> int:
    """Install one environment, run the smoke tests in it, and return pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix=f"peftly-{which}-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted(which, torch)], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)
        names = "torch|transformers|accelerate|safetensors|huggingface.hub|tokenizers|numpy|pydantic|typer|bitsandbytes"
        listed = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
        print(f"{which}: " + ", ".join(re.findall(rf"^(?:{names})==.*$", listed, re.MULTILINE | re.I)), flush=True)
        tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run([*tests, *SMOKE], check=False, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "2"})
    print(f"{which}: pytest ended with {done.returncode}", flush=True)
    return done.returncode


def main() -> None:
    """Run the environments that are asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("which", nargs="*", default=["oldest", "newest"], choices=["oldest", "newest", "beyond"])
    options.add_argument("--torch", default=pinned("torch"), help="the version of torch; without: the pinned one")
    asked = options.parse_args()
    sys.exit(max(run(which, asked.torch) for which in asked.which))


if __name__ == "__main__":
    main()
