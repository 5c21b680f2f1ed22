"""The report of one run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from peftly.errors import ConfigError
from peftly.evaluation import missing_scores
from peftly.report.audit_page import finding_rows
from peftly.report.charts import line_chart
from peftly.report.epochs import counts_tokens, epoch_rows, read_records
from peftly.report.page import machine_lines, read_json, write_page
from peftly.utils import bytes_text, count_text, score_rows, seconds_text

__all__ = ["write_report"]

_STEP_CHARTS = (
    ("grad_norm", "gradient norm", "gradient norm", 1),
    ("tokens_per_second", "speed", "tokens per second", 1),
    ("memory_bytes", "peak memory", "peak memory so far (GB)", 1e9),
)
"""Charts of the steps: key of the record, name, name of the axis, and its unit."""


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` in a run folder from the other files of the run.

    Args:
        run_folder: folder with a config.yaml; all other files may be missing.

    Returns:
        Path of the report.

    Raises:
        ConfigError: the folder holds no run.
    """
    folder = Path(run_folder)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} holds no run: it has no config.yaml")
    config_text = (folder / "config.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(config_text)
    summary, evaluation = read_json(folder / "summary.json"), read_json(folder / "evaluation.json")
    data = read_json(folder / "data.json")
    records = read_records(folder / "metrics.jsonl")
    return write_page(
        folder / "report.html",
        "report.html.jinja",
        title=folder.resolve().name,
        subtitle=f"{_methods(config['method'])} on {config['base']}{_best_step(summary)}",
        tiles=_tiles(summary, evaluation),
        charts=_charts(records),
        step_charts=_step_charts(records),
        epochs=epoch_rows(records, has_tokens=counts_tokens(folder)),
        split=evaluation.get("split", ""),
        scores=score_rows(evaluation),
        baselines=_baselines(evaluation),
        labels=evaluation.get("labels", []),
        confusion=_confusion(evaluation),
        notes=_generation_notes(evaluation),
        samples=evaluation.get("samples", []),
        data_lines=data.get("lines", []),
        findings=finding_rows(data.get("splits", {})),
        config_text=config_text,
        environment=machine_lines(summary.get("environment", {})),
    )


def _methods(method: dict[str, Any] | list[dict[str, Any]]) -> str:
    return " and ".join(settings["name"] for settings in (method if isinstance(method, list) else [method]))


def _best_step(summary: dict[str, Any]) -> str:
    if not summary:
        return ""
    early = f", stopped early of {summary['planned_steps']} planned" if summary.get("stopped_early") else ""
    reason = f": {summary['stop_reason']}" if summary.get("stop_reason") else ""
    return f", best after step {summary['best_step']} of {summary['steps']}{early}{reason}"


def _tiles(summary: dict[str, Any], evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of the most important results: two scores, and the sizes and duration of the training."""
    tiles = []
    scores = dict(score_rows(evaluation))
    for names in (("accuracy", "macro-F1"), ("entity F1", "token accuracy"), ("macro-F1", "token accuracy")):
        if all(name in scores for name in names):
            tiles += [(name, scores[name]) for name in names]
            break
    else:
        tiles += [(name, scores[name]) for name in ("loss", "perplexity", "ROUGE-L", "chrF") if name in scores]
    if summary:
        peak = summary.get("peak_memory_bytes")
        peak = f", peak memory {bytes_text(peak)}" if peak else ""
        if peak and (estimated := summary.get("estimated_memory_bytes")):
            peak += f" (estimated: {bytes_text(estimated)})"
        tiles += [
            ("trained parameters", count_text(summary["parameters"])),
            ("adapter on disk", bytes_text(summary["bytes"])),
            (f"training{peak}", seconds_text(summary["seconds"])),
        ]
    return tiles


def _baselines(evaluation: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the scores without the adapter, by name of the baseline and of the score."""
    return {name: dict(score_rows(scores)) for name, scores in evaluation.get("baselines", {}).items()}


def _generation_notes(evaluation: dict[str, Any]) -> list[str]:
    """Return sentences on the scores of generated answers."""
    if not evaluation.get("generated"):
        return []
    if evaluation.get("bleu") is None:
        return [missing_scores() or "ROUGE, chrF and BLEU were not computed: their libraries were missing"]
    return [
        f"Exact match, ROUGE, chrF and BLEU compare {count_text(evaluation['generated'])} generated answers with the "
        "expected ones; the other scores are over all examples. BLEU is computed by sacrebleu with its tokenizer "
        f"{evaluation['bleu_tokenizer']}."
    ]


def _confusion(evaluation: dict[str, Any]) -> list[tuple[str, list[dict[str, float]]]]:
    """Return each true label with its counts of predicted labels, absolute and as shares."""
    return [
        (label, [{"count": count, "share": round(count / max(1, sum(counts)), 3)} for count in counts])
        for label, counts in zip(evaluation.get("labels") or [], evaluation.get("confusion") or [], strict=True)
    ]


def _charts(records: Sequence[dict[str, Any]]) -> list[Markup]:
    """Return charts of the losses and of the validation scores, without empty ones."""
    steps = [record for record in records if record["kind"] == "step"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    losses = line_chart(
        {
            "training": [(record["step"], record["loss"]) for record in steps],
            "validation": [(record["step"], record["loss"]) for record in evaluations],
        },
        title="Loss over the steps",
        x_label="step",
        y_label="loss",
    )
    scores = line_chart(
        {
            name: [(record["step"], record[key]) for record in evaluations if record.get(key) is not None]
            for name, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1"), ("entity F1", "entity_f1"))
        },
        title="Validation scores over the steps",
        x_label="step",
        y_label="score",
        is_share=True,
    )
    # Without matplotlib both are the same line of text, which is shown once.
    return list(dict.fromkeys(chart for chart in (losses, scores) if chart))


def _step_charts(records: Sequence[dict[str, Any]]) -> list[Markup]:
    """Return charts of the gradient norm, the speed and the memory of the steps, without empty ones."""
    steps = [record for record in records if record["kind"] == "step"]
    charts = [
        line_chart(
            {name: [(record["step"], _in_unit(record.get(key), unit)) for record in steps]},
            title=f"{name.capitalize()} over the steps",
            x_label="step",
            y_label=y_label,
            is_small=True,
        )
        for key, name, y_label, unit in _STEP_CHARTS
    ]
    return [chart for chart in charts if chart.startswith("<svg")]


def _in_unit(value: object, unit: float) -> float | None:
    return value / unit if isinstance(value, int | float) else None
