"""The tables in docs/models.md, from benchmarks/results/model_classes.json."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model_classes import ROOT, Result, read

PAGE = ROOT / "docs" / "models.md"
TABLES = ("counts", "methods", "refusals", "peft", "architectures", "bases")
KINDS = {
    "text generation": ("CausalLM",),
    "text to text": ("Seq2SeqLM",),
    "masked words": ("MaskedLM", "NextSentencePrediction"),
    "labels of texts": ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"),
    "sound": ("Audio", "CTC", "RNNT", "TDT", "Speech", "TextToWaveform", "TextToSpectrogram"),
    "images with text": ("ImageTextToText", "MultimodalLM", "VisualQuestion", "DocumentQuestion", "ZeroShot"),
    "images and videos": (
        *("Image", "Video", "Object", "Depth", "Segmentation", "Mask", "Keypoint", "Estimation", "Recognition"),
        "Matting",
    ),
    "time series": ("TimeSeries",),
    "other heads": ("PreTraining", "TableQuestion", "Decision"),
    "bodies without a head": ("AutoModel",),
}
"""Kinds of models, by parts of the names of their Auto classes; the first that fits holds."""

_MOST_NAMES = 12
_PEFT = re.compile("^PEFT")


def kind_of(result: Result) -> str:
    """Return the kind of a class."""
    return next(
        kind
        for kind, parts in KINDS.items()
        if any(part in name for name in result["auto"] for part in parts if name != "AutoModel" or part == "AutoModel")
    )


def entries(results: dict[str, Any]) -> Iterator[tuple[str, str, Result]]:
    """Yield architecture, class and result of every class."""
    for model_type, found in results["architectures"].items():
        for class_name, result in found.items():
            yield model_type, class_name, result


def counts(results: dict[str, Any]) -> str:
    """Return the numbers of architectures, classes and outcomes, by kind."""
    lines = ["| kind | architectures | classes | passes | refused | faults |", "|---|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    for kind in KINDS:
        found = [entry for entry in entries(results) if "base" not in entry[2] and kind_of(entry[2]) == kind]
        number = Counter(
            classes=len(found),
            passes=sum(len(result["passes"]) for *_, result in found),
            refused=sum(len(cells) for *_, result in found for cells in result["refused"].values()),
            faults=sum(len(result["faults"]) for *_, result in found),
        )
        total += number
        types = len({model_type for model_type, *_ in found})
        lines.append(_row(kind, types, *(number[name] for name in ("classes", "passes", "refused", "faults"))))
    types = len({model_type for model_type, _, result in entries(results) if "base" not in result})
    lines.append(_row("in all", types, *(total[name] for name in ("classes", "passes", "refused", "faults"))))
    return "\n".join(lines)


def methods(results: dict[str, Any]) -> str:
    """Return the share of the classes of each kind on which each method passes."""
    by_kind: dict[str, list[Result]] = defaultdict(list)
    for *_, result in entries(results):
        if "base" not in result:
            by_kind[kind_of(result)].append(result)
    kinds = [kind for kind in KINDS if by_kind[kind]]
    lines = [_row("method", *kinds), "|---" * (len(kinds) + 1) + "|"]
    for cell in _cells(results):
        row = []
        for kind in kinds:
            tried = [result for result in by_kind[kind] if cell in _outcomes(result)]
            row.append(f"{sum(cell in result['passes'] for result in tried)} of {len(tried)}" if tried else "")
        lines.append(_row(_named(cell), *row))
    return "\n".join(lines)


def refusals(results: dict[str, Any]) -> str:
    """Return the reasons for refusals, with methods and architectures."""
    found: dict[str, tuple[set[str], set[str], Counter[str]]] = defaultdict(lambda: (set(), set(), Counter()))
    for model_type, class_name, result in entries(results):
        for reason, cells in result.get("refused", {}).items():
            names, types, number = found[_general(reason, class_name)]
            names.update(cells)
            types.add(model_type)
            number["classes"] += 1
    lines = ["| reason | methods | classes | architectures |", "|---|---|---|---|"]
    for reason, (names, types, number) in sorted(found.items(), key=lambda item: -item[1][2]["classes"]):
        ordered = [cell for cell in _cells(results) if cell in names]
        lines.append(_row(reason, ", ".join(map(_named, ordered)), number["classes"], _some(types)))
    return "\n".join(lines)


def peft(results: dict[str, Any]) -> str:
    """Return what PEFT does not do with our files, with methods and architectures."""
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for model_type, class_name, result in entries(results):
        for note, cells in result.get("notes", {}).items():
            if _PEFT.match(note):
                names, types = found[_general(note.removeprefix("PEFT cannot: "), class_name)]
                names.update(cells)
                types.add(model_type)
    lines = ["| in PEFT | methods | architectures |", "|---|---|---|"]
    for note, (names, types) in sorted(found.items(), key=lambda item: -len(item[1][1])):
        lines.append(_row(note, ", ".join(_named(cell) for cell in _cells(results) if cell in names), _some(types)))
    return "\n".join(lines)


def architectures(results: dict[str, Any]) -> str:
    """Return the architectures of each kind, by the methods that pass on all their classes."""
    lines = ["| kind | methods that pass | architectures |", "|---|---|---|"]
    for kind in KINDS:
        passing: dict[str, set[str]] = {}
        for model_type, _, result in entries(results):
            if "base" not in result and kind_of(result) == kind:
                passing[model_type] = passing.get(model_type, set(_cells(results))) & {
                    *result["passes"],
                    *(cell for cell in _cells(results) if cell not in _outcomes(result)),
                }
        groups: dict[str, list[str]] = defaultdict(list)
        for model_type, names in passing.items():
            groups[_without(names, _cells(results))].append(model_type)
        for text, types in sorted(groups.items(), key=lambda item: -len(item[1])):
            lines.append(_row(kind, text, ", ".join(sorted(types))))
    return "\n".join(lines)


def bases(results: dict[str, Any]) -> str:
    """Return the architectures of which no tiny model could be called, by reason."""
    found: dict[str, set[str]] = defaultdict(set)
    for model_type, classes in results["architectures"].items():
        if classes and all("base" in result for result in classes.values()):
            reason = next(iter(classes.values()))["base"]
            missing = re.search(r"requires the (\w+) library", reason)
            found[f"needs {missing[1]}" if missing else "no tiny config or no inputs were found"].add(model_type)
    lines = ["| reason | architectures |", "|---|---|"]
    lines += [_row(reason, ", ".join(sorted(types))) for reason, types in sorted(found.items())]
    return "\n".join(lines)


def _cells(results: dict[str, Any]) -> list[str]:
    """Return the names of the cells, in the order of the methods."""
    from model_cells import CELLS

    tried = {cell for *_, result in entries(results) if "base" not in result for cell in _outcomes(result)}
    return [cell for cell in CELLS if cell in tried]


def _outcomes(result: Result) -> set[str]:
    return {*result["passes"], *result["faults"], *(cell for cells in result["refused"].values() for cell in cells)}


def _without(names: set[str], cells: list[str]) -> str:
    """Return the shorter of a list of methods, and "all but" a list."""
    missing = [cell for cell in cells if cell not in names]
    if not missing:
        return "all"
    if not names:
        return "none"
    shown = [cell for cell in cells if cell in names]
    return ", ".join(map(_named, shown)) if len(shown) < len(missing) else f"all but {', '.join(map(_named, missing))}"


def _named(cell: str) -> str:
    method, _, variant = cell.partition(" ")
    return f"`{method}` {variant}".strip()


def _general(reason: str, class_name: str) -> str:
    """Return a reason without the parts that are of one class only."""
    reason = reason.replace(class_name, "this model").split("; this model has")[0]
    reason = re.sub(r"\bthis this model\b", "this model", reason)
    reason = re.sub(r"'base_model\.model\.[\w.]+\.(\w+)'", r"'... .\1'", reason)
    return re.sub(r"\S*\.\d+\.\S*", "...", reason).replace("|", "\\|")


def _some(names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _MOST_NAMES} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more


def _row(*values: object) -> str:
    return "| " + " | ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values) + " |"


def with_tables(page: str, results: dict[str, Any]) -> str:
    """Return the page with new tables."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    for name in TABLES:
        head, rest = page.split(f"<!-- table: {name} -->\n")
        _, tail = rest.split("<!-- end of table -->\n", 1)
        page = f"{head}<!-- table: {name} -->\n\n{globals()[name](results)}\n\n<!-- end of table -->\n{tail}"
    head, rest = page.split("<!-- versions -->")
    return f"{head}<!-- versions -->{versions}<!-- end -->{rest.split('<!-- end -->', 1)[1]}"


def write_page(path: Path = PAGE) -> None:
    """Write the tables into the page."""
    path.write_text(with_tables(path.read_text(encoding="utf-8"), read()), encoding="utf-8")
