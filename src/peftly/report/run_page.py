"""The report of one run."""

import json
from pathlib import Path
from typing import Any

import yaml

from peftly.errors import ConfigError
from peftly.report._page import machine_lines, read_json, render
from peftly.report.charts import line_chart
from peftly.utils import bytes_text, count_text, score_rows, seconds_text

__all__ = ["write_report"]


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` in a run folder from its other files.

    Raises:
        ConfigError: the folder holds no run.
    """
    from markupsafe import Markup

    folder = Path(run_folder)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} holds no run: it has no config.yaml")
    config_text = (folder / "config.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(config_text)
    summary, evaluation = read_json(folder / "summary.json"), read_json(folder / "evaluation.json")
    page = render(
        "report.html.jinja",
        title=folder.resolve().name,
        subtitle=f"{_methods(config['method'])} on {config['base']}{_best(summary)}",
        tiles=_tiles(summary, evaluation),
        charts=[Markup(chart) for chart in _charts(folder / "metrics.jsonl")],  # noqa: S704 -- our own pictures
        split=evaluation.get("split", ""),
        scores=score_rows(evaluation),
        labels=evaluation.get("labels", []),
        confusion=_confusion(evaluation),
        samples=evaluation.get("samples", []),
        data_lines=read_json(folder / "data.json").get("lines", []),
        config_text=config_text,
        environment=machine_lines(summary.get("environment", {})),
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _methods(method: dict[str, Any] | list[dict[str, Any]]) -> str:
    return " and ".join(one["name"] for one in (method if isinstance(method, list) else [method]))


def _best(summary: dict[str, Any]) -> str:
    return f", best after step {summary['best_step']} of {summary['steps']}" if summary else ""


def _tiles(summary: dict[str, Any], evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    tiles = []
    scores = dict(score_rows(evaluation))
    for names in (("accuracy", "macro-F1"), ("entity F1", "token accuracy"), ("macro-F1", "token accuracy")):
        if all(name in scores for name in names):
            tiles += [(name, scores[name]) for name in names]
            break
    else:
        tiles += [(name, scores[name]) for name in ("loss", "perplexity") if name in scores]
    if summary:
        tiles += [
            ("trained parameters", count_text(summary["parameters"])),
            ("adapter on disk", bytes_text(summary["bytes"])),
            ("training", seconds_text(summary["seconds"])),
        ]
    return tiles


def _confusion(evaluation: dict[str, Any]) -> list[tuple[str, list[dict[str, float]]]]:
    """Return each label with its row of counts and their share of the row."""
    return [
        (label, [{"count": count, "share": round(count / max(1, sum(counts)), 3)} for count in counts])
        for label, counts in zip(evaluation.get("labels") or [], evaluation.get("confusion") or [], strict=True)
    ]


def _charts(metrics: Path) -> list[str]:
    """Draw the losses, and the validation scores if there are any."""
    records = []
    if metrics.is_file():
        records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    training = [(record["step"], record["loss"]) for record in records if record["kind"] == "step"]
    checks = [record for record in records if record["kind"] == "evaluation"]
    losses = line_chart(
        {"training": training, "validation": [(check["step"], check["loss"]) for check in checks]},
        title="Loss over the steps",
        x_label="step",
        y_label="loss",
    )
    scores = line_chart(
        {
            name: [(check["step"], check[key]) for check in checks if check.get(key) is not None]
            for name, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1"), ("entity F1", "entity_f1"))
        },
        title="Validation scores over the steps",
        x_label="step",
        y_label="share",
    )
    return [chart for chart in (losses, scores) if chart]
