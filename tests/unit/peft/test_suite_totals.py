"""The page about PEFT quotes the totals of PEFT's own tests."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
RESULT = json.loads((ROOT / "benchmarks" / "results" / "peft_suite.json").read_text(encoding="utf-8"))


def test_the_page_quotes_the_totals():
    section = PAGE[PAGE.index("## The tests of PEFT") :]
    quoted = sorted(
        int(count.replace(",", "")) for count in re.findall(r"^\| .+ \| ([\d,]+) \|$", section, re.MULTILINE)
    )
    totals = {key: count for key, count in RESULT["totals"].items() if key != "xfailed"}
    assert [count for count in quoted if count] == sorted(totals.values())
    for count in (RESULT["deselected"], RESULT["peft"]["passed"]):
        assert f"{count:,}" in section
    assert f"{RESULT['minutes']} minutes" in section


def test_every_failure_has_its_reason():
    counted = {why: sum(entry["count"] for entry in names.values()) for why, names in RESULT["failed"].items()}
    assert counted == {why: RESULT["totals"][why] for why in counted}
    assert all(
        entry["why"] or why == "a fault of ours" or "Hub" in why
        for why, names in RESULT["failed"].items()
        for entry in names.values()
    )
