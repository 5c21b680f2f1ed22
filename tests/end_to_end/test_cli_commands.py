"""Every command on a tiny base: its output and its files."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import Peftly, command, environment, peftly_apart


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_llama_folder, tweets) -> Path:
    """The run folder of `peftly train` in another process."""
    out = tmp_path_factory.mktemp("runs") / "tweets"
    flags = ["--base", tiny_llama_folder, "--data", tweets, "--test", tweets, "--method", "lora", "--out", out]
    outcome = peftly_apart("train", *flags, "--epochs", "12", "--learning-rate", "0.02", "--set", "train.save_steps=50")
    assert (outcome.code, outcome.err) == (0, "")
    assert "batches: packed examples, without padding" in outcome.out
    assert "peftly evaluate" in outcome.out
    return out


def test_a_run_folder_is_complete(trained, tiny_llama_folder):
    names = {file.name for file in trained.iterdir()}
    assert names == {
        *("config.yaml", "data.json", "metrics.jsonl", "evaluation.json", "summary.json", "report.html"),
        *("adapter", "step-50", ".peftly.json"),
    }
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["base"] == str(tiny_llama_folder)
    assert config["method"] == {**config["method"], "name": "lora", "rank": 8}
    assert config["train"]["epochs"] == 12
    assert config["train"]["weight_decay"] is not None
    for folder in ("adapter", "step-50"):
        files = {file.name for file in (trained / folder).iterdir()}
        assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md", "peftly.json"}
    assert json.loads((trained / "data.json").read_text())["row_format"]["labels"] == ["complaint", "no complaint"]
    report = (trained / "report.html").read_text()
    assert "no complaint" in report
    assert "<svg" in report


def test_training_helps(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    assert losses[-1] < losses[0] / 2
    assert json.loads((trained / "evaluation.json").read_text())["accuracy"] >= 0.9


def test_evaluate_repeats_the_scores_of_the_training(peftly: Peftly, trained, tweets):
    stored = json.loads((trained / "evaluation.json").read_text())
    for options in ([], ["--data", tweets, "--batch-size", "7"]):
        outcome = peftly("evaluate", trained, "--json", *options)
        assert (outcome.code, outcome.err) == (0, "")
        scores = json.loads(outcome.out)
        assert scores["confusion"] == stored["confusion"]
        assert scores["loss"] == pytest.approx(stored["loss"], rel=1e-5)


def test_evaluate_prints_tables(peftly: Peftly, trained):
    outcome = peftly("evaluate", trained / "adapter")
    assert outcome.code == 0
    for word in ("accuracy", "macro-F1", "perplexity", "no complaint"):
        assert word in outcome.out


def test_evaluate_says_which_rows_were_trained_on(peftly: Peftly, trained, tweets, tmp_path):
    """The test file of this run is its training file."""
    outcome = peftly("evaluate", trained, "--data", tweets, "--json")
    assert outcome.code == 0
    assert "have a prompt that the adapter was trained on" in json.loads(outcome.out)["notes"][1]
    new = tmp_path / "new.jsonl"
    new.write_text('{"text": "a new text", "label": "complaint"}\n')
    assert json.loads(peftly("evaluate", trained, "--data", new, "--json").out)["notes"] == [f"1 example of {new}"]
    (of_run, repeated) = json.loads(peftly("evaluate", trained, "--json").out)["notes"]
    assert of_run == "40 test examples of the run"
    assert repeated.startswith("36 of 40 rows have a prompt")


def test_evaluate_generates_answers(peftly: Peftly, tiny_llama_folder, trained, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {number}", "completion": "thanks"} for number in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    flags = ["--base", tiny_llama_folder, "--data", file, "--method", "lora", "--out", out]
    outcome = peftly("train", *flags, "--set", "train.max_steps=1", "--set", "train.generation_examples=1")
    assert "generating 1 answer of the validation split" in outcome.out
    assert json.loads((out / "evaluation.json").read_text())["generated"] == 1
    outcome = peftly("evaluate", out, "--generate", "8")
    assert (outcome.code, outcome.err) == (0, "")
    for name in ("generated answers", "exact match", "ROUGE-L", "chrF", "BLEU"):
        assert name in outcome.out
    scores = json.loads(peftly("evaluate", out, "--generate", "8", "--json").out)
    assert (scores["generated"], len(scores["predictions"])) == (2, 2)
    refused = peftly("evaluate", trained, "--generate", "8")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "have no answers to generate" in refused.err


def test_evaluate_needs_known_labels(peftly: Peftly, trained, tmp_path):
    file = tmp_path / "other.jsonl"
    file.write_text('{"text": "a", "label": "complaint"}\n{"text": "a", "label": "praise"}\n')
    outcome = peftly("evaluate", trained, "--data", file)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "praise" in outcome.err


def test_generate_writes_the_learned_labels(peftly: Peftly, trained, tiny_llama_folder):
    text = "@shop love the store 9"
    outcome = peftly("generate", trained, "--text", text, "--max-new-tokens", "12")
    assert (outcome.code, outcome.err) == (0, "")
    assert "complaint" in outcome.out
    beams = peftly("generate", trained / "step-50", "--text", text, "--num-beams", "2", "--max-new-tokens", "4")
    assert beams.code == 0
    untouched = peftly("generate", "--base", tiny_llama_folder, "--prompt", text, "--max-new-tokens", "12")
    assert untouched.code == 0
    assert untouched.out != outcome.out


def test_sampling_repeats_with_its_seed(peftly: Peftly, tiny_llama_folder):
    def sample(seed: int) -> str:
        options = ["--prompt", "the", "--temperature", "1.5", "--max-new-tokens", "16", "--seed", str(seed)]
        return peftly("generate", "--base", tiny_llama_folder, *options).out

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_generate_takes_the_sampling_and_stop_options(peftly: Peftly, tiny_llama_folder):
    def write(*options: str) -> str:
        outcome = peftly("generate", "--base", tiny_llama_folder, "--prompt", "the", "--max-new-tokens", "16", *options)
        assert (outcome.code, outcome.err) == (0, "")
        return outcome.out.removesuffix("\n")

    greedy = write()
    assert write("--temperature", "5", "--top-k", "1") == greedy
    assert write("--temperature", "5", "--min-p", "1") == greedy
    stop = greedy[len(greedy) // 2 :][:3]
    assert write("--stop", "never there", "--stop", stop) == greedy.partition(stop)[0]
    refused = peftly("generate", "--base", tiny_llama_folder, "--prompt", "the", "--top-k", "5")
    assert (refused.code, "top_k=5 has no effect at temperature 0" in refused.err) == (2, True)


def test_inspect_marks_the_trained_tokens(peftly: Peftly, trained, tweets, tiny_llama_folder):
    flags = ["--base", tiny_llama_folder, "--data", tweets]
    for arguments in ([trained], [trained / "config.yaml"], flags):
        outcome = peftly("inspect", *arguments, "--examples", "2")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.count("⟦") == 3, outcome.out  # two examples and the legend
        assert "<|im_end|>⟧" in outcome.out
        assert "example 2:" in outcome.out
    cut = peftly(
        "inspect", *flags, "--max-length", "12", "--set", "data.template='A very long introduction : {text} :'"
    )
    assert "cut" in cut.out


def test_reset_starts_a_new_conversation(peftly: Peftly, tiny_llama_folder, monkeypatch):
    typed = "hello\n\n/reset\nhello\n/exit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    outcome = peftly("chat", "--base", tiny_llama_folder, "--max-new-tokens", "3")
    assert (outcome.code, outcome.err) == (0, "")
    first, second = outcome.out.split("(new conversation)")
    assert first.splitlines()[1].strip() == second.splitlines()[1].strip()
    options = ["--temperature", "5", "--top-k", "1", "--min-p", "0.5", "--stop", "never there"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    same = peftly("chat", "--base", tiny_llama_folder, "--max-new-tokens", "3", *options)
    assert (same.code, same.out) == (0, outcome.out)


def test_methods_lists_them_all(peftly: Peftly):
    from peftly.methods import METHODS

    outcome = peftly("methods")
    assert outcome.code == 0
    for name, method in METHODS.items():
        assert name in outcome.out
        assert method.paper in outcome.out


def test_env_holds_the_facts_of_a_bug_report_and_no_secrets(peftly: Peftly, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    outcome = peftly("env")
    assert outcome.code == 0
    for word in (
        "python",
        "torch",
        "transformers",
        "bitsandbytes",
        "CPU bf16",
        "dtype auto",
        "peftly cache",
        "threads",
    ):
        assert word in outcome.out
    assert "secret" not in outcome.out
    facts = json.loads(peftly("env", "--json").out)
    assert facts["dtype_auto"] in ("bfloat16", "float32")


def test_overwrite_replaces_the_run_and_no_other_file(peftly: Peftly, tiny_llama_folder, tweets, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--base", tiny_llama_folder, "--data", tweets, "--out", out, "--epochs", "1"]
    assert peftly(*arguments, "--method", "prompt_tuning", "--set", "train.save_steps=2").code == 0
    (out / "notes.txt").write_text("mine")
    (out / "step-2" / "thoughts.txt").write_text("mine too")
    assert peftly(*arguments, "--method", "lora").code == 2
    assert peftly(*arguments, "--method", "lora", "--overwrite").code == 0
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert (out / "notes.txt").read_text() == "mine"
    assert [file.name for file in (out / "step-2").iterdir()] == ["thoughts.txt"]
    assert not (out / "step-4").exists()


def test_a_mistake_found_late_leaves_the_old_run_alone(peftly: Peftly, trained, tiny_llama_folder, tweets):
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*")}
    arguments = ["train", "--base", tiny_llama_folder, "--data", tweets, "--out", trained, "--overwrite"]
    assert peftly(*arguments, "--method", "lora", "--set", "method.target_modules=[nothing]").code == 2
    assert {file: file.stat().st_mtime_ns for file in trained.rglob("*")} == before


def test_other_row_formats_train_and_show_samples(peftly: Peftly, tiny_llama_folder, tmp_path):
    shapes = {
        "completion": {"prompt": "say {}", "completion": "word {}"},
        "chat": {"messages": [{"role": "user", "content": "say {}"}, {"role": "assistant", "content": "word {}"}]},
        "text": {"text": "a plain line {}"},
    }
    for kind, row in shapes.items():
        file, out = tmp_path / f"{kind}.jsonl", tmp_path / kind
        file.write_text("".join(json.dumps(row).replace("{}", str(number)) + "\n" for number in range(20)))
        outcome = peftly(
            *("train", "--base", tiny_llama_folder, "--data", file, "--method", "lora", "--out", out, "--epochs", "1")
        )
        assert (outcome.code, outcome.err) == (0, "")
        samples = json.loads((out / "evaluation.json").read_text())["samples"]
        assert len(samples) == (0 if kind == "text" else 2)
        assert all(sample["gold"].startswith("word") for sample in samples)


def test_interrupted_training_reports_the_folder_of_its_weights(tiny_llama_folder, tweets, tmp_path):
    out = tmp_path / "run"
    flags = ["--base", tiny_llama_folder, "--data", tweets, "--method", "lora", "--out", out, "--epochs", "100000"]
    process = subprocess.Popen(
        command("train", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert len(err.splitlines()) == 1, err
    assert "interrupted" in err
    assert (out / "adapter-interrupted" / "adapter_config.json").is_file()
