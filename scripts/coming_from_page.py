"""Write the tables of docs/coming_from.md: options of other tools, and the settings of peftly with the same purpose.

    make reference

The names are those that peftly knows when somebody types them (`peftly.setting_names`), and those that are equal.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from peftly.data import DataConfig
from peftly.methods import METHODS
from peftly.runs import RunConfig
from peftly.setting_names import OTHER_NAMES
from peftly.training import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "coming_from.md"
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

SAME = {
    **{name: f"data.{name}" for name in DataConfig.model_fields},
    **{name: f"train.{name}" for name in TrainConfig.model_fields},
    **{name: name for name in RunConfig.model_fields},
    **{name: f"method.{name}" for method in METHODS.values() for name in method.config.model_fields if name != "name"},
}
"""Path of each setting of peftly by its last name; names that occur twice have the path of a method."""


def options() -> dict[str, list[str]]:
    """Return the names of the options of each tool."""
    import peft
    from transformers import TrainingArguments
    from trl import SFTConfig

    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import tool_settings

    trainer = [field.name for field in fields(TrainingArguments)]
    configs = (peft.LoraConfig, peft.PromptTuningConfig, peft.PromptEncoderConfig, peft.PrefixTuningConfig)
    return {
        "PEFT": list(dict.fromkeys(field.name for config in configs for field in fields(config))),
        "Trainer": [*trainer, "evaluation_strategy"],  # its name before transformers 4.46
        "TRL": [field.name for field in fields(SFTConfig) if field.name not in trainer],
        "LLaMA-Factory": tool_settings.LLAMA_FACTORY,
        "axolotl": tool_settings.AXOLOTL,
        "ms-swift": tool_settings.MS_SWIFT,
    }


def table(names: Iterable[str]) -> str:
    """Return the table of a tool: each setting of peftly with the options of the tool for the same purpose."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name in names:
        other = OTHER_NAMES.get(name)
        if other is not None and other.settings:
            value = f": {other.value}" if other.value else ""
            key = (" / ".join(f"`{setting}{value}`" for setting in other.settings), other.note)
        elif other is None and name in SAME:
            key = (f"`{SAME[name]}`", "")
        else:
            continue
        rows.setdefault(key, []).append(f"`{name}`")
    lines = ["| option | setting of peftly | conversion |", "|---|---|---|"]
    lines += [f"| {', '.join(theirs)} | {ours} | {note} |" for (ours, note), theirs in sorted(rows.items())]
    return "\n" + "\n".join(lines) + "\n\n"


def with_tables(page: str) -> str:
    """Return the page with its tables."""
    names = options()
    return TABLE.sub(lambda match: match[1] + table(names[match[2].partition(" ")[2]]) + match[3], page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
