"""Mistakes of the user: one line on standard error, exit code 2, no traceback, no partial output."""

import json
import shutil
from pathlib import Path

import pytest
from commands import Peftly


def failed(outcome, *words: str) -> str:
    """Check the outcome of a command with bad input, and return its error line."""
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: "), lines
    assert "Traceback" not in outcome.out
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


@pytest.fixture
def train(peftly: Peftly, tiny_llama_folder: Path, tweets: Path, tmp_path: Path):
    """A command with valid options, except those that the test gives."""

    def run(*options: str, data: Path = tweets):
        out = tmp_path / "out"
        valid = {"--base": tiny_llama_folder, "--data": data, "--method": "lora", "--out": out}
        arguments = [part for option in valid.items() if option[0] not in options for part in option]
        outcome = peftly("train", *arguments, *options)
        assert not out.exists(), f"left {sorted(out.rglob('*'))}"
        return outcome

    return run


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", "", ["empty"]),
        ("broken.jsonl", '{"text": "a b", "label": "x"}\n' * 6 + '{"text": "a\n', ["line 7", "JSON"]),
        ("listed.jsonl", '{"text": "a b", "label": "x"}\n[1]\n', ["line 2"]),
        ("field.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n', ["line 2", "label"]),
        ("notes.docx", "PK", [".docx"]),
    ],
)
def test_bad_data(train, tmp_path, name, content, words):
    file = tmp_path / name
    file.write_text(content)
    failed(train(data=file), name, *words)


def test_data_that_is_not_there(train, tmp_path):
    failed(train(data=tmp_path / "nothing.jsonl"), "nothing.jsonl")


def test_a_label_never_seen(train, tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text('{"text": "a b", "label": "complaint"}\n{"text": "a b", "label": "praise"}\n')
    failed(train("--test", str(file)), "line 2", "praise", "no complaint")


def test_no_trained_token_left(train, tmp_path):
    file = tmp_path / "blank.jsonl"
    file.write_text('{"text": ""}\n{"text": ""}\n')
    failed(train(data=file), "blank.jsonl", "no trained token", "line")


def test_a_template_field_that_no_row_has(train):
    failed(train("--template", "Tweet: {tweet} Label:", "--target", "label"), "tweet", "text")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "lroa"], ["lroa", "did you mean lora?", "prompt_tuning"]),
        (["--set", "method.target_modules=[nothing_here]"], ["nothing_here", "q_proj"]),
        (["--set", "train.lerning_rate=1"], ["train.lerning_rate", "train.learning_rate"]),
        (["--set", "train.num_train_epochs=1"], ["train.num_train_epochs", "use train.epochs"]),
        (["--set", "bf16=true"], ["bf16", "set dtype to bfloat16"]),
        (["--lr", "1e-4"], ["No such option: --lr", "use train.learning_rate", "--set KEY=VALUE"]),
        (["--lora-r", "8"], ["No such option: --lora-r", "use method.rank", "--set KEY=VALUE"]),
        (
            ["--set", "train.optimizer=paged_adamw_32bit"],
            ["train.optimizer", "write paged_adamw for paged_adamw_32bit"],
        ),
        (["--set", "train.max_steps=-1"], ["train.max_steps: leave it out for a training without this limit", "-1"]),
        (["--epochs", "0"], ["train.epochs", "greater than or equal to 1", "0"]),
        (["--set", "method.rank=lots"], ["method.rank", "integer", "'lots'"]),
        (
            ["--set", "train.metric_for_best_model=accuracy", "--set", "data.validation_fraction=0"],
            ["train.metric_for_best_model", "validation"],
        ),
        (["--base", "no-such-folder/at-all/here"], ["no-such-folder/at-all/here"]),
    ],
)
def test_bad_settings(train, options, words):
    failed(train(*options), *words)


def test_a_loss_that_is_no_number_stops_the_run(peftly, tiny_llama_folder, tweets, tmp_path):
    arguments = ["train", "--base", tiny_llama_folder, "--data", tweets, "--method", "lora", "--out", tmp_path / "out"]
    outcome = peftly(*arguments, "--learning-rate", "1e30", "--set", "train.max_grad_norm=null")
    failed(outcome, "learning_rate")
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
    assert "1.0e+30" in (tmp_path / "out" / "report.html").read_text()


def test_an_out_folder_that_holds_another_run(peftly, tiny_llama_folder, tweets, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text("base: mine\n")
    (out / ".peftly.json").write_text('{"kind": "a run", "finished": true}')
    arguments = ["train", "--base", tiny_llama_folder, "--data", tweets, "--method", "lora", "--out", out]
    failed(peftly(*arguments), "holds a run", "--overwrite")
    assert sorted(file.name for file in out.iterdir()) == [".peftly.json", "config.yaml"]
    assert (out / "config.yaml").read_text() == "base: mine\n"


def test_a_project_is_never_replaced(peftly, tiny_llama_folder, tweets, tmp_path):
    """A project folder with a configuration, its rows and a report of its own."""
    contents = {
        "config.yaml": "data: {train: data.json}\n",
        "data.json": tweets.read_text(),
        "report.html": "<p>mine</p>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    arguments = ["train", "--base", tiny_llama_folder, "--data", tweets, "--method", "lora", "--out", tmp_path]
    failed(peftly(*arguments, "--overwrite"), "holds files that are not part of a run")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == contents


def test_an_out_folder_that_holds_something_else(peftly, tiny_llama_folder, tweets, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    arguments = [
        "train",
        "--base",
        tiny_llama_folder,
        "--data",
        tweets,
        "--method",
        "lora",
        "--out",
        out,
        "--overwrite",
    ]
    failed(peftly(*arguments), "not part of a run")
    assert (out / "thesis.txt").read_text() == "mine"


def test_an_out_that_is_a_file(peftly, tiny_llama_folder, tweets):
    arguments = ["train", "--base", tiny_llama_folder, "--data", tweets, "--method", "lora", "--out", tweets]
    failed(peftly(*arguments), "is a file")


def test_a_quickstart_into_somebody_elses_folder(peftly, tiny_llama_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    failed(peftly("quickstart", "--base", tiny_llama_folder, "--out", tmp_path), "not part of a quickstart")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("command", [["evaluate"], ["generate", "--prompt", "a"], ["chat"], ["inspect"]])
def test_a_run_that_is_not_there(peftly, tmp_path, command):
    (tmp_path / "empty").mkdir()
    failed(peftly(command[0], tmp_path / "empty", *command[1:]), "empty")


def test_neither_run_nor_base(peftly):
    failed(peftly("generate", "--prompt", "a"), "--base")
    failed(peftly("chat"), "--base")


def test_text_and_prompt_at_once(peftly, tiny_llama_folder):
    failed(peftly("generate", "--base", tiny_llama_folder, "--text", "a", "--prompt", "b"), "--text", "--prompt")


def test_a_model_without_a_template(peftly, tiny_llama_folder, tmp_path):
    mute = tmp_path / "mute"
    shutil.copytree(tiny_llama_folder, mute)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        file = mute / name
        if file.is_file() and name.endswith(".jinja"):
            file.unlink()
        elif file.is_file():
            content = {key: value for key, value in json.loads(file.read_text()).items() if key != "chat_template"}
            file.write_text(json.dumps(content))
    failed(peftly("chat", "--base", mute), "chat template")
    failed(peftly("generate", "--base", mute, "--text", "a"), '--prompt "…"')


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
        ("{{ 1 / 0 }}", "zero"),
    ],
)
def test_a_chat_with_the_template_of_a_stranger(peftly, tiny_llama_folder, tmp_path, monkeypatch, template, reason):
    monkeypatch.setattr("peftly.data.chat_template._MAX_SECONDS", 0.2)
    strange = tmp_path / "strange"
    shutil.copytree(tiny_llama_folder, strange)
    (strange / "chat_template.jinja").write_text(template)
    failed(peftly("chat", "--base", strange), f"the chat template of {strange} fails", reason)


def test_numbers_that_are_none(peftly, tiny_llama_folder, tmp_path):
    base = ["generate", "--base", tiny_llama_folder, "--prompt", "a"]
    for option, value in (("--temperature", "nan"), ("--top-p", "nan"), ("--min-p", "nan"), ("--num-beams", "9" * 30)):
        failed(peftly(*base, option, value), value if option != "--num-beams" else "num_beams")
    for option, value in (("--repetition-penalty", "1e400"), ("--seed", "4294967296"), ("--max-new-tokens", "1.5")):
        failed(peftly(*base, option, value))
    failed(peftly("quickstart", "--seed", 2**32, "--out", tmp_path / "q"), "--seed", "4294967295")
    failed(peftly("merge", "a", "b", "--weights", "nan,1", "--out", tmp_path / "m"), "--weights nan,1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], ["--nonsense", "peftly --help"]),
        (["trian"], ["trian", "train"]),
        (["train", "--nonsense"], ["--nonsense", "peftly train --help"]),
        (["train", "--epochs", "many"], ["--epochs", "integer"]),
        (["quickstart", "--epochs", "0"], ["--epochs", "1"]),
        (["evaluate"], ["RUN"]),
        (["methods", "extra"], ["extra"]),
    ],
    ids=lambda part: " ".join(part),
)
def test_wrong_usage_is_one_line(peftly, arguments, words):
    failed(peftly(*arguments), *words)


@pytest.mark.parametrize("options", [["--debug"], []], ids=["option", "variable"])
def test_debug_shows_the_traceback(peftly, options, tmp_path, monkeypatch):
    file = tmp_path / "nothing.yaml"
    assert "Traceback" not in peftly("train", file).err
    if not options:
        monkeypatch.setenv("PEFTLY_DEBUG", "1")
    outcome = peftly(*options, "train", file)
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")


def test_a_value_that_is_none_of_the_choices_is_said_in_plain_words(peftly: Peftly):
    """The line said "Value error, 'foo' is not one of ..."."""
    outcome = peftly("quickstart", "--task", "foo")
    assert outcome.code == 2
    assert outcome.err.startswith("error: Invalid value for '--task': 'foo' is not one of 'messages', 'tweets'")
