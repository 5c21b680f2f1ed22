"""The card of an adapter on the Hub: data, scores, training and use, from the files of its run."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from peftly.exporting import SavedAdapter, serve_command
from peftly.methods import default_learning_rate
from peftly.runs.config import RunConfig
from peftly.training import TrainConfig
from peftly.utils import count_text, score_rows, seconds_text

__all__ = ["RunFacts", "hub_card", "read_facts"]

_PIPELINES = {
    "causal_lm": "text-generation",
    "seq2seq_lm": "text-generation",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
}
"""Tasks of the Hub."""

_METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "entity_f1": ("f1", "Entity F1"),
    "perplexity": ("perplexity", "Perplexity"),
    "exact_match": ("exact_match", "Exact match"),
    "rouge_1": ("rouge", "ROUGE-1"),
    "rouge_2": ("rouge", "ROUGE-2"),
    "rouge_l": ("rouge", "ROUGE-L"),
    "chrf": ("chrf", "chrF"),
    "bleu": ("bleu", "BLEU"),
}
"""Type and name of the scores in the metadata of a card."""

_HIDDEN = {"report_to", "checkpoint_steps", "keep_checkpoints", "save_steps", "evaluation_batch_size", "fsdp"}
"""Settings that no weight depends on."""


class RunFacts(NamedTuple):
    """What the files of a run say about an adapter; all empty for an adapter without a run.

    Attributes:
        config: configuration of the run.
        data: content of `data.json`.
        evaluation: content of `evaluation.json`.
        summary: content of `summary.json`.
    """

    config: RunConfig | None
    data: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def sources(self) -> dict[str, str]:
        """Names of the data of each split: a Hub id, or the name of a file without its folders."""
        splits = self.data.get("splits", {})
        return {name: _public_names(split.get("source", ""), split.get("hub", ())) for name, split in splits.items()}

    @property
    def datasets(self) -> list[str]:
        """Ids of the data sets on the Hub."""
        sources = [source for split in self.data.get("splits", {}).values() for source in split.get("hub", ())]
        return list(dict.fromkeys(re.split(r"[@:[]", source)[0] for source in sources))


def read_facts(folder: Path | None, config: RunConfig | None) -> RunFacts:
    """Read the files of a run.

    Args:
        folder: run folder; None: there is no run.
        config: its configuration.
    """
    return RunFacts(config, *(_read_json(folder, name) for name in ("data", "evaluation", "summary")))


def hub_card(
    saved: Mapping[str, SavedAdapter],
    base: str,
    repo: str,
    facts: Mapping[str, RunFacts],
    *,
    votes: str | None = None,
    vote_scores: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of the card.

    Args:
        saved: adapters by their folder in the repository; "" for one adapter.
        base: Hub id of the base.
        repo: Hub id of the adapter.
        facts: facts of the runs, by the same folders.
        votes: rule of the vote of an ensemble; None: the adapters are no ensemble.
        vote_scores: scores of the vote, by the names of the fields of `Evaluation`; None: there are none.
    """
    first, run = next(iter(saved.values())), next(iter(facts.values()))
    methods = list(dict.fromkeys(adapter.config.name for adapter in saved.values()))
    sections = [
        f"# {_title(methods, base, len(saved), votes)}",
        *_data(run),
        *_scores(facts, vote_scores),
        *_training(saved, run),
        *_use(saved, base, repo, votes),
        "## Licence\n\nNo licence was chosen for this adapter. The licence of its base applies to the base.",
    ]
    scores = run.evaluation if votes is None else vote_scores or {}
    return f"---\n{_metadata(first, methods, base, repo, run, scores)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _title(methods: Sequence[str], base: str, count: int, votes: str | None) -> str:
    names = " and ".join(methods)
    if votes is not None:
        return f"An ensemble of {count} {names} adapters for {base}"
    return f"A {names} adapter for {base}" if count == 1 else f"Adapters ({names}) for {base}, trained together"


def _metadata(
    saved: SavedAdapter, methods: Sequence[str], base: str, repo: str, facts: RunFacts, scores: Mapping[str, Any]
) -> str:
    task = _PIPELINES.get(saved.files.task or "")
    split = facts.evaluation.get("split", "test")
    data = facts.sources.get(split, "")
    values = {name: scores.get(name) for name in _METRICS}
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            dataset_split=split,
            metric_type=_METRICS[name][0],
            metric_name=_METRICS[name][1],
            metric_value=round(value, 6),
        )
        for name, value in values.items()
        if task and data and isinstance(value, int | float) and math.isfinite(value)
    ]
    card = ModelCardData(
        base_model=base,
        library_name="peft" if saved.peft_limitation is None else "peftly",
        pipeline_tag=task,
        datasets=facts.datasets or None,
        tags=["peftly", *methods, f"base_model:adapter:{base}"],
        model_name=repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    text: str = card.to_yaml().strip()
    return text


def _data(facts: RunFacts) -> list[str]:
    splits = facts.data.get("splits", {})
    if not splits:
        return []
    rows = [
        f"| {name} | {_cell(facts.sources[name])} | {count_text(split['rows'])} | {_sha256(facts.data, name)} |"
        for name, split in splits.items()
    ]
    row_format = facts.data.get("row_format", {})
    lines = ["## Data\n\n| split | data | rows | SHA-256 |\n|---|---|---|---|", *rows]
    lines.append("\nThe SHA-256 is of the digests of the rows in their order, as peftly reads them.")
    if template := row_format.get("template"):
        target = f"; `{row_format['target']}` is learned" if row_format.get("target") else ""
        lines.append(f"\nA row becomes a prompt by this template{target}:\n\n{_block(template)}")
    return ["\n".join(lines)]


def _scores(facts: Mapping[str, RunFacts], vote: Mapping[str, Any] | None) -> list[str]:
    columns = {name or "adapter": dict(score_rows(run.evaluation)) for name, run in facts.items() if run.evaluation}
    if not columns:
        return []
    columns |= {"vote": dict(score_rows(vote))} if vote else {}
    run = next(run for run in facts.values() if run.evaluation)
    columns |= {name: dict(score_rows(scores)) for name, scores in run.evaluation.get("baselines", {}).items()}
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    rows = [f"| {name} | {' | '.join(scores.get(name, '') for scores in columns.values())} |" for name in names]
    head = f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}"
    count = count_text(run.evaluation["rows"])
    return ["\n".join([f"## Scores\n\nOn {count} examples of the {run.evaluation['split']} split:\n\n{head}", *rows])]


def _training(saved: Mapping[str, SavedAdapter], facts: RunFacts) -> list[str]:
    lines = []
    for name, adapter in saved.items():
        settings = adapter.config.model_dump(mode="json", exclude={"name"})
        shown = ", ".join(f"{key}: {_shown(value)}" for key, value in settings.items() if value not in (None, [], {}))
        lines.append(f"- {f'`{name}`: ' if name else ''}{adapter.config.name} ({shown})")
    if facts.config is not None:
        train, method = facts.config.train, next(iter(facts.config.adapters.values()))
        rate = train.learning_rate or default_learning_rate(method)
        defaults = TrainConfig().model_dump(mode="json")
        changed = {
            key: value
            for key, value in train.model_dump(mode="json", exclude=_HIDDEN).items()
            if value != defaults[key] or key in ("batch_size", "optimizer", "lr_scheduler_type", "seed")
        }
        changed = {"learning_rate": rate, **{key: value for key, value in changed.items() if key != "learning_rate"}}
        lines += [f"- {key}: {_shown(value)}" for key, value in changed.items()]
        if facts.config.quantization is not None:
            lines.append(f"- base quantized to {facts.config.quantization.kind}")
    if summary := facts.summary:
        best = f", of which those of step {summary['best_step']} are kept" if summary.get("best_step") else ""
        lines.append(f"- {summary['steps']} steps in {seconds_text(summary['seconds'])}{best}")
        lines.append(f"- {count_text(summary['parameters'])} trained parameters")
        versions = summary.get("environment", {}).get("versions", {})
        lines.append("- " + ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    return ["## Training\n\n" + "\n".join(lines)]


def _use(saved: Mapping[str, SavedAdapter], base: str, repo: str, votes: str | None) -> list[str]:
    first = next(iter(saved.values()))
    folder = next(iter(saved))
    peft = "PEFT does not read this adapter: " + (first.peft_limitation or "")
    if first.peft_limitation is None:
        labels = f", id2label={dict(enumerate(first.labels))!r}" if first.labels else ""
        inner = f", subfolder={json.dumps(folder)}" if folder else ""
        code = (
            "import transformers\nfrom peft import PeftModel\n\n"
            f"base = transformers.{first.auto_class}.from_pretrained({json.dumps(base)}{labels})\n"
            f"model = PeftModel.from_pretrained(base, {json.dumps(repo)}{inner})"
        )
        others = [name for name in saved if name != folder]
        more = "".join(f"\nmodel.load_adapter({json.dumps(repo)}, {name!r}, subfolder={name!r})" for name in others)
        peft = f"With [PEFT](https://github.com/huggingface/peft):\n\n```python\n{code}{more}\n```"
    if votes is None:
        peftly = f'peftly generate {repo} --text "…"'
    else:
        peftly = f'hf download {repo} --local-dir ensemble\npeftly generate ensemble/{folder} --text "…"'
    own = f"With peftly:\n\n```\n{peftly}\n```"
    if votes is not None:
        own += f"\n\nThe members vote on labels ({votes})."
    parts = [own, peft]
    serve = serve_command(first, base, repo.partition("/")[2], repo) if not folder else None
    if serve is not None:
        parts.append(f"With vLLM:\n\n```\n{serve}\n```")
    return ["## Use\n\n" + "\n\n".join(parts)]


def _public_names(source: str, hub: Sequence[str]) -> str:
    """Return the names of sources without local folders.

    Args:
        source: names of files, folders and data sets on the Hub.
        hub: those of the Hub. A run of an earlier version has none noted.
    """
    names = source.split(" + ")
    return " + ".join(name if name.partition(" [")[0] in hub else Path(name).name for name in names)


def _sha256(data: Mapping[str, Any], split: str) -> str:
    digests = data.get("digests", {}).get(split)
    return f"`{hashlib.sha256(digests.encode()).hexdigest()}`" if isinstance(digests, str) else ""


def _cell(text: str) -> str:
    """Return a text for a cell of a table in Markdown."""
    return text.replace("|", "\\|")


def _block(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_json(folder: Path | None, name: str) -> dict[str, Any]:
    file = None if folder is None else folder / f"{name}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
