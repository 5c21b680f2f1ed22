"""Virtual tokens at the marks of a template: train, evaluate, generate and inspect, from the command line."""

import json
import re

import pytest
import torch
import yaml
from commands import Peftly
from tiny_tasks import answer_rows, labelled_rows, write_rows

from peftly import open_run, use_prompt_positions
from peftly.data import RowFormat, encode_example_prompt

TEMPLATE = "{prompt:3}{text}{prompt:3}\nLabel:{prompt:3}"


@pytest.fixture
def settings(tiny_llama_folder, tweets, tmp_path):
    return {
        "base": str(tiny_llama_folder),
        "data": {"train": str(tweets), "test": str(tweets), "template": TEMPLATE, "target": "label"},
        "method": {"name": "p_tuning", "num_virtual_tokens": 9, "position": "template"},
        "train": {"epochs": 6, "learning_rate": 0.01},
        "out": str(tmp_path / "run"),
    }


def written(settings, folder):
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_from_a_file_to_an_answer(peftly: Peftly, settings, tmp_path):
    settings["method"] |= {"name": "prompt_tuning", "init": "vocabulary"}
    settings["train"] = {"epochs": 40, "learning_rate": 0.1}
    outcome = peftly("train", written(settings, tmp_path))
    assert (outcome.code, outcome.err) == (0, "")
    run = tmp_path / "run"
    scores = json.loads((run / "evaluation.json").read_text())
    assert scores["accuracy"] > 0.7
    again = json.loads(peftly("evaluate", run, "--json").out)
    assert again["loss"] == pytest.approx(scores["loss"], rel=1e-5)
    on_file = json.loads(peftly("evaluate", run / "adapter", "--data", settings["data"]["test"], "--json").out)
    assert on_file["loss"] == pytest.approx(scores["loss"], rel=1e-5)
    notes = json.loads((run / "adapter" / "peftly.json").read_text())
    assert RowFormat.from_dict(notes["row_format"]).template == TEMPLATE
    peft = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert peft["peft_type"] == "PEFTLY_PROMPT_TUNING"
    model, tokenizer, shape, _ = open_run(str(run))
    row = encode_example_prompt(shape.format_prompt("late again"), tokenizer)
    with use_prompt_positions(model, [row.prompt_positions]):
        wanted = model.generate(torch.tensor([row.input_ids]), max_new_tokens=8, do_sample=False, use_cache=False)
    outcome = peftly("generate", run, "--text", "late again", "--max-new-tokens", 8)
    assert outcome.code == 0
    assert outcome.out.strip() == tokenizer.decode(wanted[0, len(row.input_ids) :], skip_special_tokens=True).strip()
    shown = peftly("inspect", run).out
    assert re.search(r"\{prompt:3\}│@[^⟦]*│\{prompt:3\}│⏎\n[^⟦]*│\{prompt:3\}│⟦", shown)
    outcome = peftly("generate", run, "--prompt", "late again\nLabel:")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "this call has no positions" in outcome.err


def test_a_classifier(peftly: Peftly, settings, task_base, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", labelled_rows())
    settings["base"] = str(task_base("bert"))
    settings["data"] |= {"train": str(file), "test": str(file), "template": "{prompt:3}{text}{prompt:6}"}
    outcome = peftly("train", written(settings, tmp_path))
    assert (outcome.code, outcome.err) == (0, "")
    outcome = peftly("generate", tmp_path / "run", "--text", "late again")
    assert outcome.code == 0
    assert outcome.out.startswith("complaint")


def test_an_encoder_decoder_shows_samples(peftly: Peftly, settings, task_base, tmp_path):
    file = str(write_rows(tmp_path / "rows.jsonl", answer_rows()))
    settings["base"] = str(task_base("t5"))
    settings["data"] = {"train": file, "test": file, "template": "{prompt:3}{prompt}{prompt:6}", "target": "completion"}
    outcome = peftly("train", written(settings, tmp_path))
    assert (outcome.code, outcome.err) == (0, "")
    samples = json.loads((tmp_path / "run" / "evaluation.json").read_text())["samples"]
    said = peftly("generate", tmp_path / "run", "--text", samples[0]["text"], "--max-new-tokens", 64)
    assert (said.code, said.out.strip()) == (0, samples[0]["predicted"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--template", "{text}{prompt:many}"], ["'{prompt:many}'", "as in {prompt:3}"]),
        (["--template", "{prompt:3}{text}"], ["9 virtual tokens", "marks 3", "num_virtual_tokens"]),
        (["--template", "{text} Label:"], ["9 virtual tokens", "marks 0", "{prompt:9}"]),
        (
            ["--set", "method.position=front"],
            ["marks 9 virtual tokens", "no method inserts any there", "method.position"],
        ),
        (["--set", "method.position=inside"], ["method.position", "'front', 'after_cls' or 'template'", "inside"]),
        (["--set", "method={name: lora}"], ["marks 9 virtual tokens", "no method inserts any there"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(options, words, peftly, settings, tmp_path):
    outcome = peftly("train", written(settings, tmp_path), *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "run").exists()
