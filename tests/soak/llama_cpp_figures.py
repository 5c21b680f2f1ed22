"""Differences between llama.cpp and peftly, measured by test_llama_cpp.py, and the page that quotes them."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "llama_cpp.json"
PAGE = ROOT / "docs" / "export.md"
TABLE = re.compile(r"(<!-- table: llama.cpp -->\n).*?(<!-- end of table -->)", re.DOTALL)
FILES = {
    "beside": "base and adapter as `gguf-lora`, f32, keys and values in f32",
    "merged": "merged, f32",
    "f16": "merged, f16",
    "bf16": "merged, bf16",
    "q8_0": "merged, q8_0, where llama.cpp rounds activations too",
}


def read() -> dict[str, float]:
    """Return the committed difference of each kind of file."""
    found: dict[str, float] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def write(kind: str, difference: float) -> None:
    """Write one difference into the results, and the results into the page."""
    results = (read() if RESULTS.is_file() else {}) | {kind: difference}
    results = {name: results[name] for name in FILES if name in results}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


def with_table(page: str, results: dict[str, float]) -> str:
    """Return the page with the table of the results."""
    lines = ["| file | logits differ by (of their norm) |", "|---|---|"]
    lines += [f"| {FILES[name]} | {value:.0e} |" for name, value in results.items()]
    text = "\n" + "\n".join(lines) + "\n\n"
    return TABLE.sub(lambda match: match[1] + text + match[2], page)
