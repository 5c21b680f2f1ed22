"""Each script of a tutorial, with PEFT and with the import of peftly: equal counts, losses, texts and files."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers as tf
from references import assert_close
from tutorial_scripts import SCRIPTS, TOOLS, ScriptRun, changed_import, run_script, script
from tutorial_variants import VARIANTS

CAUSAL, CLASSES, SEQ2SEQ = (
    tf.AutoModelForCausalLM,
    tf.AutoModelForSequenceClassification,
    tf.AutoModelForSeq2SeqLM,
)


@dataclass(frozen=True)
class Case:
    """A script, and the folders of its adapters that each tool must open."""

    base: str
    auto: type
    adapters: tuple[str, ...] = ("adapter",)
    settings: dict = field(default_factory=dict)


CASES = {
    "chinese_alpaca": Case("bloom-1b4-zh", CAUSAL, ("adapter", "chatbot/checkpoint-2")),
    **{
        f"chinese_alpaca:{name}": Case("bloom-1b4-zh", CAUSAL, ("adapter", "chatbot/checkpoint-2"))
        for name in VARIANTS["chinese_alpaca"]
    },
    "chinese_continue": Case("bloom-1b4-zh", CAUSAL),
    "film_reviews": Case("bert-base-uncased", CLASSES, ("adapter", "reviews/checkpoint-2"), {"num_labels": 2}),
    **{
        f"film_reviews:{name}": Case(
            "bert-base-uncased", CLASSES, ("adapter", "reviews/checkpoint-2"), {"num_labels": 2}
        )
        for name in VARIANTS["film_reviews"]
        if name != "p_tuning"  # see test_better
    },
    "twitter_complaints": Case("bloomz-560m", CAUSAL),
    "twitter_ablation": Case("bloomz-560m", CAUSAL, ()),
    "twitter_ensemble": Case("bloomz-560m", CAUSAL, tuple(f"prompt-{seed}" for seed in range(5))),
    "llama_qlora": Case("llama-2-7b", CAUSAL, ("adapter", "quotes-run/checkpoint-4")),
    "llama_sft": Case("llama-2-7b", CAUSAL, ("adapter", "quotes-sft/checkpoint-3")),
    "digits": Case("", CAUSAL, ()),
    "translation": Case("mt0-large", SEQ2SEQ),
    "second_adapter": Case("bloom-1b4-zh", CAUSAL, ("adapters/polite", "adapters/brief")),
    "opt_adapter": Case("opt-350m", CAUSAL, ("opt-350m-lora",)),
}


def losses(run: ScriptRun) -> list[float]:
    """Return the losses, gradient norms and scores of a run, of Trainer or of the script's own loop."""
    trainers = {id(value): value for value in run.variables.values() if isinstance(value, tf.Trainer)}
    keys = ("loss", "grad_norm", "eval_loss", "eval_accuracy", "mean_token_accuracy")
    logs = [entry for trainer in trainers.values() for entry in trainer.state.log_history]
    return [entry[key] for entry in logs for key in keys if key in entry] + run.variables.get("losses", [])


def texts(run: ScriptRun) -> list[str]:
    """Return what a script printed, without the lines of Trainer, which hold seconds."""
    return [line for line in run.printed.splitlines() if not line.startswith("{")]


def logits(tool: str, case: Case, base, adapter) -> torch.Tensor:
    """Return the logits of one unpadded text, of an adapter in a folder."""
    model = TOOLS[tool].PeftModel.from_pretrained(case.auto.from_pretrained(base, **case.settings), adapter).eval()
    ids = {"input_ids": torch.tensor([[7, 30, 12, 45, 33]])}
    if case.auto is SEQ2SEQ:
        ids["labels"] = ids["input_ids"]
    with torch.no_grad():
        found = model(**ids).logits
    return found[:, -5:] if found.ndim == 3 else found  # PEFT's begin with those of virtual tokens


@pytest.mark.parametrize("name", CASES)
def test_script(name, workspace):
    case, source = CASES[name], script(name)
    theirs = run_script(source, "peft", workspace())
    ours = run_script(source, "peftly", workspace(), start=theirs.initial)
    assert ours.counts() == theirs.counts()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    assert texts(ours) == texts(theirs)
    for adapter in case.adapters:
        for run in (ours, theirs):
            with torch.random.fork_rng():
                found = {}
                for tool in TOOLS:
                    torch.manual_seed(3)  # of a head that the base lacks
                    found[tool] = logits(tool, case, run.folder / case.base, run.folder / adapter)
            assert_close(found["peftly"], found["peft"], 1e-5)


def test_the_page_has_the_changed_lines_of_each_script():
    page = (Path(__file__).parents[2] / "docs" / "tutorials.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, re.MULTILINE)
    sources = {file.stem: file.read_text(encoding="utf-8") for file in SCRIPTS.glob("*.py")}
    for name, source in sources.items():
        lines = zip(source.splitlines(), changed_import(source)[0].splitlines(), strict=True)
        assert dict(rows)[name] == str(sum(before != after for before, after in lines))
    assert sources.keys() == dict(rows).keys() == {name.partition(":")[0] for name in CASES}
