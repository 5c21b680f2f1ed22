"""PEFT's own tests on peftly.peft: which pass, and why the others do not.

    python scripts/peft_suite.py [FOLDER]

Downloads the source distribution of PEFT into FOLDER (build/peft-suite), writes tiny stand-ins for the models of the
Hub, runs the tests that concern the methods of peftly, first with PEFT itself (the baseline: tests that fail there
cannot pass offline with these stand-ins), then with peftly.peft in place of `peft`, and writes
benchmarks/results/peft_suite.json. `--again` takes the baseline of an earlier run in FOLDER.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft_suite_reasons import FAULT, reason

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/peft_suite.json"
VERSION = "0.21.2"
SLICES = (
    (
        *("auto", "config", "helpers", "hub_features", "initialization", "lora_variants", "loraplus", "low_level_api"),
        *("mapping", "mixed", "other", "quantization", "seq_classifier", "target_parameters"),
        *("token_classification_qa", "tuners_utils", "vision_models"),
    ),
    ("decoder_models", "encoder_decoder_models", "feature_extraction_models"),
    ("custom_models",),
)
"""Test files of PEFT that concern the methods of peftly, by the process that runs them."""


def fetch(folder: Path) -> Path:
    """Return the folder of PEFT's tests, which is downloaded if it is missing."""
    tests = folder / "source" / "tests"
    if not tests.is_dir():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        source = ["--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder), f"peft=={VERSION}"]
        subprocess.run([*pip, "download", "--no-deps", *source], check=True)
        subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "libs"), "parameterized"], check=True)
        with tarfile.open(folder / f"peft-{VERSION}.tar.gz") as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (folder / "source").mkdir()
        (folder / "unpacked" / f"peft-{VERSION}" / "tests").rename(tests)
        (tests / "__init__.py").touch()  # the archive leaves it out
    return tests.parent


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT / "scripts", folder / "libs"))),
        **more,
    }


def write_models(folder: Path) -> None:
    if not (folder / "hub").is_dir():
        script = [sys.executable, str(ROOT / "scripts/peft_suite_models.py"), str(folder / "hub")]
        subprocess.run(script, env=environment(folder), check=True, stderr=subprocess.DEVNULL)


def run(folder: Path, package: str) -> tuple[list[dict[str, Any]], float]:
    """Run the tests with a package, and return the outcomes and the seconds."""
    source, start = fetch(folder), time.monotonic()
    records = [folder / f"{package}-{number}.jsonl" for number in range(len(SLICES))]
    for record, names in zip(records, SLICES, strict=True):
        record.unlink(missing_ok=True)
        files = [f"tests/test_{name}.py" for name in names]
        command = [sys.executable, "-m", "pytest", "-p", "peft_suite_plugin", "-p", "no:cacheprovider", "-q", "-n", "0"]
        settings = {"PEFT_SUITE_PACKAGE": package, "PEFT_SUITE_RECORD": str(record)}
        done = subprocess.run(
            [*command, "-o", "addopts=", "--tb=no", "--no-summary", "-W", "ignore", *files],
            cwd=source,
            env=environment(folder, **settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(f"{package}, {len(names)} files: {done.stdout.strip().splitlines()[-1]}", flush=True)
        if done.returncode not in (0, 1):
            raise SystemExit(done.stdout[-3000:])
    (folder / f"{package}.seconds").write_text(f"{time.monotonic() - start:.0f}")
    return outcomes(folder, package), time.monotonic() - start


def outcomes(folder: Path, package: str) -> list[dict[str, Any]]:
    """Return the recorded outcomes of a package, one of each test."""
    lines = (
        line
        for number in range(len(SLICES))
        for line in (folder / f"{package}-{number}.jsonl").read_text().splitlines()
    )
    rows = [json.loads(line) for line in lines]
    by_id = {row["id"]: row for row in rows if "id" in row and row["outcome"] != "failed"}
    by_id |= {row["id"]: row for row in rows if row.get("outcome") == "failed"}
    return [*by_id.values(), *(row for row in rows if "deselected" in row)]


def summary(ours: Iterable[dict[str, Any]], theirs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return totals, outcomes by file, and the failed tests by reason and name."""
    ours = list(ours)
    in_peft = {row["id"]: row["outcome"] for row in theirs if "id" in row}
    tests = [row for row in ours if "id" in row]
    by_file: dict[str, Counter[str]] = defaultdict(Counter)
    failed: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    totals: Counter[str] = Counter()
    for row in tests:
        file = row["id"].partition("::")[0].removeprefix("tests/")
        outcome, note = row["outcome"], ""
        if outcome == "failed":
            outcome, note = reason(row, in_peft.get(row["id"], "missing"))
            name = row["id"].removeprefix("tests/").partition("[")[0]
            entry = failed[outcome].setdefault(name, {"count": 0, "why": note})
            entry["count"] += 1
            if outcome == FAULT:
                entry.setdefault("examples", []).append(row["id"])
                entry["message"] = f"{row['error']}: {row['message'][:200]}"
        by_file[file][outcome] += 1
        totals[outcome] += 1
    return {
        "totals": dict(sorted(totals.items())),
        "peft": dict(sorted(Counter(in_peft.values()).items())),
        "deselected": sum(row.get("deselected", 0) for row in ours),
        "files": {file: dict(sorted(counts.items())) for file, counts in sorted(by_file.items())},
        "failed": {why: dict(sorted(names.items())) for why, names in sorted(failed.items())},
    }


def main(folder: Path, *, again: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    fetch(folder)
    write_models(folder)
    if not (again and (folder / "peft.seconds").is_file()):
        run(folder, "peft")
    baseline = outcomes(folder, "peft")
    ours, seconds = run(folder, "peftly")
    result = {
        "version": VERSION,
        "minutes": round((seconds + float((folder / "peft.seconds").read_text())) / 60, 1),
        **summary(ours, baseline),
    }
    RESULT.write_text(re.sub(r"\n {8}\s+", " ", json.dumps(result, indent=1, ensure_ascii=False)) + "\n", "utf-8")
    for key, count in result["totals"].items():
        print(f"{count:6,}  {key}")
    for name, entry in result["failed"].get(FAULT, {}).items():
        print(f"fault: {entry['count']} {name}: {entry['message']}")
    return int(FAULT in result["failed"])


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--again"]
    sys.exit(
        main(Path(arguments[0] if arguments else ROOT / "build/peft-suite").resolve(), again="--again" in sys.argv)
    )
