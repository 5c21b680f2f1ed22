"""`peftly chat` and `peftly generate` use the format that a run was trained with."""

import io
import sys

import pytest
from tiny import perturb

from peftly import LoRA, attach, generate, load_base, open_run, save_adapter, trainable_parameters
from peftly.data import RowFormat

FORMATS = {
    "instructions": RowFormat("alpaca", "Instruction: {instruction}\nInput: {input}\nAnswer:", "output"),
    "conversations": RowFormat("chat", None, "messages"),
    "text": RowFormat("text", None, "text"),
    "questions": RowFormat("completion", "{title}: {question}", "answer"),
}


@pytest.fixture(scope="module", name="runs")
def _runs(tiny_llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats") / "runs"
    base = load_base(str(tiny_llama_folder), dtype="float32")
    attach(base.model, LoRA(rank=2))
    perturb(trainable_parameters(base.model).values())
    for name, row_format in FORMATS.items():
        save_adapter(base.model, folder / name, notes={"row_format": row_format.to_dict()})
    return folder


@pytest.fixture(name="talk")
def _talk(peftly, monkeypatch):
    """Chat with some lines; return the outcome."""

    def talk(run, *options, lines=("late again", "thanks")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        return peftly("chat", run, "--max-new-tokens", 4, *options)

    return talk


def answer(run, prompt):
    opened = open_run(str(run))
    return generate(opened.model, opened.tokenizer, prompt, max_new_tokens=4)[0]


def printed(text):
    """Return an answer as it is printed, without the sign for a character that was cut at its end."""
    return text.rstrip("\ufffd").strip()


def test_a_run_on_instructions_is_asked_as_it_was_trained(talk, runs):
    run = runs / "instructions"
    outcome = talk(run)
    assert (outcome.code, outcome.err) == (0, "")
    asked = [f"Instruction: {line}\nAnswer:" for line in ("late again", "thanks")]
    assert outcome.out.rstrip().endswith("\n".join(printed(answer(run, prompt)) for prompt in asked))
    assert "a line is 'instruction'; it sees no earlier lines" in outcome.out
    with_input = talk(run, "--field", "input=the app", lines=["late again"])
    assert printed(answer(run, "Instruction: late again\nInput: the app\nAnswer:")) in with_input.out


def test_a_run_on_conversations_reads_the_system_message_and_the_turns_before(talk, runs, peftly):
    run, system = runs / "conversations", {"role": "system", "content": "Be brief"}
    outcome = talk(run, "--system", "Be brief")
    assert (outcome.code, outcome.err) == (0, "")
    turns = [system, {"role": "user", "content": "late again"}]
    first = answer(run, turns)
    second = answer(run, [*turns, {"role": "assistant", "content": first}, {"role": "user", "content": "thanks"}])
    assert outcome.out.rstrip().endswith(f"{printed(first)}\n{printed(second)}")
    alone = peftly("generate", run, "--text", "late again", "--system", "Be brief", "--max-new-tokens", 4)
    assert (alone.code, alone.out) == (0, printed(first) + "\n")
    assert alone.out != peftly("generate", run, "--text", "late again", "--max-new-tokens", 4).out


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("text", [], "this run learned plain text, which it continues; use peftly generate"),
        ("questions", [], 'give the others: --field title="…"'),
        ("questions", ["--field", "title=x", "--field", "question=y"], 'give the others: --field title="…"'),
        ("questions", ["--system", "x"], "--system does not fit: this run learned the template"),
        ("instructions", ["--field", "inpt=x"], "--field inpt is no field"),
        ("conversations", ["--field", "input=x"], "--field is for a run that learned a template"),
    ],
)
def test_what_cannot_be_a_conversation_is_one_line(talk, runs, name, options, words):
    outcome = talk(runs / name, *options)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert words in outcome.err
    assert not outcome.out


def test_a_field_given_once_leaves_the_other_to_the_lines(talk, runs):
    run = runs / "questions"
    outcome = talk(run, "--field", "title=App", lines=["late again"])
    assert outcome.out.rstrip().endswith(printed(answer(run, "App: late again")))


def test_a_prompt_for_a_classifier_is_used_without_its_template(peftly, task_base, tmp_path):
    base = load_base(str(task_base("bert")), task="sequence_classification", labels=["a", "b"], dtype="float32")
    attach(base.model, LoRA(rank=2))
    notes = {"row_format": RowFormat("label", "late late: {text}", "label", ("a", "b")).to_dict()}
    save_adapter(base.model, tmp_path, notes=notes)
    raw, whole, text = (
        peftly("generate", tmp_path, *options).out
        for options in (["--prompt", "again"], ["--prompt", "late late: again"], ["--text", "again"])
    )
    assert whole == text != raw
    refused = peftly("chat", tmp_path)
    assert (
        refused.code,
        f'gives labels and writes no text; use peftly generate {tmp_path} --text "…"' in refused.err,
    ) == (2, True)
