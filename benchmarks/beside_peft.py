"""The five lines of README.md that say what is different from PEFT, with figures from the committed results.

    python benchmarks/beside_peft.py

writes them; `make test` compares them with the JSON.
"""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "README.md"
LINES = re.compile(r"(<!-- table: beside PEFT -->\n).*?(<!-- end of table -->)", re.DOTALL)
PROMPTS = ("W1", "W1L", "W2", "W6", "W6P")
"""Jobs of benchmarks/speed.py with prompt tuning, prefix tuning and P-tuning."""


def _read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def lines() -> list[str]:
    """Return the lines."""
    padding, peft_suite = _read("padding"), _read("peft_suite")
    jobs = {one["job"]: one for one in _read("speed")["results"] if one["dtype"] == "bfloat16"}
    ours = {f"{loss:.3f}" for loss in padding["peftly"]}
    if len(ours) > 1:
        raise ValueError(f"the loss of peftly depends on padding: {ours}")
    theirs = ", ".join(f"{loss:.3f}" for loss in padding["PEFT"])
    lengths = [f"to {length} tokens" for length in padding["padded_to"][1:]]

    def times(names: tuple[str, ...], contender: str = "PEFT, classic") -> str:
        ratios = sorted(jobs[name]["ratios"][contender]["median"] for name in names)
        low, high = f"{ratios[0]:.1f}", f"{ratios[-1]:.1f}"
        return low if low == high else f"{low} to {high}"

    def memory(name: str) -> str:
        found = jobs[name]["memory"]
        return f"{found['peftly'] / 1e6:,.0f} MB instead of {found['PEFT, classic'] / 1e6:,.0f} MB"

    crashes = _read("crashes").values()
    cases, lost = (sum(part[key] for kind in crashes for part in kind["parts"].values()) for key in ("cases", "lost"))
    return [
        f"- **Padding changes nothing.** The same batch, unpadded, padded {' and '.join(lengths)}: its loss is "
        f"{min(ours)} each time. With PEFT it is {theirs}.",
        f"- **Faster.** A step of a soft prompt is {times(PROMPTS)} times as fast as PEFT in the tutorials' setting, "
        f"LoRA {times(('W3',))}, DoRA {times(('W4D',))}; beside PEFT's best setting {times(PROMPTS, 'PEFT, best')}, "
        f"{times(('W3',), 'PEFT, best')} and {times(('W4D',), 'PEFT, best')}.",
        f"- **Less memory** above the loaded base: prompt tuning {memory('W1')}, DoRA {memory('W4D')}. LoRA takes "
        f"{memory('W3')}, because more examples are computed at once.",
        f"- **Nothing is lost.** A killed run continues to the same bytes. In {cases:,} tried kills, power cuts and "
        f"full disks, {lost} results were lost.",
        f"- **The same files and names.** PEFT reads and writes the adapters; `from peftly.peft import ...` passes "
        f"{peft_suite['totals']['passed']:,} of PEFT's own tests.",
    ]


def with_lines(page: str) -> str:
    """Return a page with the lines."""
    return LINES.sub(lambda match: match[1] + "\n" + "\n".join(lines()) + "\n\n" + match[2], page)


if __name__ == "__main__":
    PAGE.write_text(with_lines(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
