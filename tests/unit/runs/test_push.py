"""Adapters on the Hub: what is uploaded, from a run to a stand-in of the Hub, and opened from there again."""

import json
import re
from pathlib import Path

import datasets
import pytest
import yaml
from hub_server import hub_server
from typer.testing import CliRunner

import peftly
from peftly.adapters import open_adapters
from peftly.cli import app
from peftly.errors import AdapterError, ConfigError
from peftly.runs import open_run, push, run, run_together
from peftly.runs.config import JobsConfig, RunConfig
from peftly.runs.config_file import dump_config

BASE = "someone/tiny-llama"
ROWS = [
    {"text": f"{words} {n}", "label": label} for n in range(5) for words, label in (("迟到了", "坏"), ("great", "好"))
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub, to which this process has a token."""
    with hub_server() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", HF_URL.format(running.url))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", running.token)
        yield running


HF_URL = "{}/{{repo_id}}/resolve/{{revision}}/{{filename}}"


def settings(base, data, out, **others):
    train = {"max_steps": 1, "batch_size": 2}
    return {
        "base": str(base),
        "data": {"train": str(data), "template": "{text}\n评价:"},
        "out": str(out),
        "train": train,
        "method": {"name": "lora", "rank": 2},
        "baselines": False,
    } | others


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("private data") / "评论.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(tiny_llama_folder, rows, tmp_path_factory):
    """A run folder."""
    out = tmp_path_factory.mktemp("runs") / "tweets"
    run(RunConfig.model_validate(settings(tiny_llama_folder, rows, out)))
    return out


def front_matter(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_a_pushed_run_opens_from_its_id(hub, trained, tiny_llama_folder):
    pushed = push(trained, "alice/tweets", base=BASE, message="first")
    files = hub.files("alice/tweets")
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "peftly.json"}
    assert {name: len(content) for name, content in files.items()} == pushed.files
    assert [commit[:3] for commit in hub.commits] == [("alice/tweets", "main", "first")]
    assert pushed.url.startswith(f"{hub.url}/alice/tweets/commit/")
    assert files["README.md"].decode() == pushed.card
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    here = open_run(str(trained))
    there = open_run("alice/tweets", base=str(tiny_llama_folder))
    assert there.row_format == here.row_format
    texts = [peftly.generate(one.model, one.tokenizer, "迟到了", max_new_tokens=4) for one in (here, there)]
    assert texts[0] == texts[1]


def test_the_command_shows_what_it_would_upload_and_uploads_it(hub, trained):
    def command(*options):
        outcome = CliRunner().invoke(app, ["push", str(trained), *options], catch_exceptions=False)
        return outcome.exit_code, (outcome.stdout or outcome.stderr).splitlines()

    target = ["--to", "alice/notes", "--base", BASE, "--private", "--revision", "draft", "--message", "说明"]
    code, lines = command(*target, "--dry-run")
    assert code == 0
    assert lines[-1] == "nothing was uploaded to alice/notes (--dry-run)"
    assert f"base_model: {BASE}" in lines
    assert not hub.requests
    code, lines = command(*target)
    assert code == 0
    assert [commit[:3] for commit in hub.commits] == [("alice/notes", "draft", "说明")]
    assert hub.repos["alice/notes"]["private"]
    assert lines[-1].startswith(f"pushed to {hub.url}/alice/notes/commit/")
    assert {line.split()[0] for line in lines[:-1] if line.startswith("  ")} == set(hub.files("alice/notes", "draft"))
    code, lines = command("--to", "not an id")
    assert code == 2
    assert len(lines) == 1


def test_the_card(hub, trained):
    card = push(trained, "alice/tweets", base=BASE, dry_run=True).card
    front = front_matter(card)
    assert front["base_model"] == BASE
    assert front["library_name"] == "peft"
    assert front["pipeline_tag"] == "text-generation"
    assert "license" not in front
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"name": "评论.jsonl", "type": "评论.jsonl", "split": "validation"}
    stored = json.loads((trained / "evaluation.json").read_text())
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values["Accuracy"] == pytest.approx(stored["accuracy"])
    assert re.search(r"\| train \| 评论.jsonl \| 9 \| `[0-9a-f]{64}` \|", card)
    assert "{text}\n评价:" in card
    assert "lora (rank: 2" in card
    assert 'PeftModel.from_pretrained(base, "alice/tweets")' in card
    assert "peftly generate alice/tweets" in card
    assert f"vllm serve {BASE} --enable-lora --max-lora-rank 8 --lora-modules tweets=alice/tweets" in card
    assert not hub.requests


def test_nothing_of_this_machine_is_uploaded(hub, trained, rows, tiny_llama_folder):
    push(trained, "alice/tweets", base=BASE)
    content = b"".join(hub.files("alice/tweets").values())
    for text in (str(trained.parent), str(rows.parent), "private data", str(tiny_llama_folder), hub.token):
        assert text.encode() not in content


def test_a_secret_in_a_setting_is_refused(hub, trained, tmp_path, monkeypatch, tiny_llama_folder, rows):
    """The template of the run holds the value of an environment variable."""
    secret = "0123456789abcdef"
    monkeypatch.setenv("MY_API_KEY", secret)
    config = settings(tiny_llama_folder, rows, tmp_path / "run")
    config["data"]["template"] = f"{secret} {{text}}\nLabel:"
    run(RunConfig.model_validate(config))
    with pytest.raises(ConfigError, match="holds the value of MY_API_KEY"):
        push(tmp_path / "run", "alice/tweets", base=BASE)
    assert not hub.repos


@pytest.mark.parametrize(
    ("to", "base", "message"),
    [
        ("tweets", BASE, r"--to tweets: not the id of a repository"),
        ("a/b/c", BASE, "not the id of a repository"),
        ("alice/twe ets", BASE, "not the id of a repository"),
        ("alice/tweets", None, r"the base .*tiny-llama is a folder or file of this machine.*--base organization/name"),
        ("alice/tweets", "./tiny-llama", "is a folder or file of this machine"),
    ],
)
def test_names_that_are_refused(hub, trained, to, base, message):
    with pytest.raises(ConfigError, match=message):
        push(trained, to, base=base)
    assert not hub.requests


def test_a_folder_without_an_adapter(tmp_path):
    with pytest.raises(AdapterError, match="holds no adapter"):
        push(tmp_path, "alice/tweets")
    with pytest.raises(AdapterError, match="is no run folder"):
        push("someone/adapter", "alice/tweets")


def test_without_a_token_nothing_is_sent(hub, trained, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="there is no token for the Hub: type hf auth login, or set HF_TOKEN"):
        push(trained, "alice/tweets", base=BASE)
    assert not hub.requests


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ("repos/create", 401, "HTTP 401.*hf auth login"),
        ("repos/create", 403, "HTTP 403.*may not write there"),
        ("/commit/", 409, "HTTP 409.*push again"),
        ("/commit/", 412, "HTTP 412.*push again"),
        ("/lfs/", 403, "403"),
    ],
)
def test_a_refusal_is_one_line_and_nothing_is_uploaded(hub, trained, request_, status, message):
    hub.failing[request_] = status
    with pytest.raises(ConfigError, match=message) as caught:
        push(trained, "alice/tweets", base=BASE)
    assert "\n" not in str(caught.value)
    assert not hub.commits


def test_no_network_is_one_line(hub, trained, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"alice/tweets: nothing was uploaded, http://127.0.0.1:9 does not answer"):
        push(trained, "alice/tweets", base=BASE)


def test_private_repositories(hub, trained):
    push(trained, "alice/private", base=BASE, private=True)
    assert hub.repos["alice/private"]["private"]
    hub.add("alice/public")
    with pytest.raises(ConfigError, match="alice/public exists and is public"):
        push(trained, "alice/public", base=BASE, private=True)
    assert not hub.files("alice/public")


def test_an_earlier_adapter_is_replaced_and_other_files_are_kept(hub, trained):
    earlier = {"adapter_config.json": b"{}", "training.safetensors": b"old", "tokenizer.json": b"{}", "plot.png": b"x"}
    hub.add("alice/tweets", **earlier)
    push(trained, "alice/tweets", base=BASE)
    assert hub.commits[0][4] == ["tokenizer.json", "training.safetensors"]
    assert "plot.png" in hub.files("alice/tweets")
    hub.add("alice/model", **{"config.json": b"{}", "model.safetensors": b"x", ".gitattributes": b""})
    with pytest.raises(ConfigError, match=r"alice/model exists and holds no adapter \(config.json\)"):
        push(trained, "alice/model", base=BASE)


def test_a_branch(hub, trained):
    hub.add("alice/tweets", **{".gitattributes": b""})
    push(trained, "alice/tweets", base=BASE, revision="v2")
    assert set(hub.files("alice/tweets")) == {".gitattributes"}
    assert "adapter_config.json" in hub.files("alice/tweets", "v2")


def test_members_of_an_ensemble_have_folders(hub, tiny_llama_folder, rows, tmp_path):
    config = settings(tiny_llama_folder, rows, tmp_path / "votes", ensemble=2)
    run_together(RunConfig.model_validate(config))
    pushed = push(tmp_path / "votes", "alice/votes", base=BASE)
    members = {Path(name).parent.as_posix() for name in pushed.files}
    assert members == {".", "member_1", "member_2"}
    assert "member_1/README.md" not in pushed.files
    assert 'PeftModel.from_pretrained(base, "alice/votes", subfolder="member_1")' in pushed.card
    assert "An ensemble of 2 lora adapters" in pushed.card
    assert "| | member_1 | member_2 | vote |" in pushed.card
    vote = next(
        row for row in json.loads((tmp_path / "votes/results.json").read_text())["rows"] if row["folder"] is None
    )
    (result,) = front_matter(pushed.card)["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == pytest.approx({"Accuracy": vote["accuracy"], "Macro F1": vote["macro_f1"]}, abs=1e-6)


def test_adapters_that_were_trained_together_open_from_their_id(hub, tiny_llama_folder, rows, tmp_path):
    config = settings(tiny_llama_folder, rows, tmp_path / "run", method=["ia3", {"name": "lora", "rank": 2}])
    run(RunConfig.model_validate(config))
    pushed = push(tmp_path / "run", "alice/both", base=BASE)
    assert {"ia3/adapter_config.json", "lora/adapter_config.json"} <= set(pushed.files)
    assert list(open_adapters("alice/both").folders) == ["ia3", "lora"]


def test_jobs_are_pushed_one_by_one(hub, tiny_llama_folder, rows, tmp_path):
    config = settings(tiny_llama_folder, rows, tmp_path / "jobs/one")
    (tmp_path / "jobs").mkdir()
    jobs = JobsConfig(jobs={"one": RunConfig.model_validate(config)}, out=str(tmp_path / "jobs"))
    (tmp_path / "jobs/config.yaml").write_text(dump_config(jobs))
    with pytest.raises(ConfigError, match="holds runs that were trained side by side; name one of them"):
        push(tmp_path / "jobs", "alice/jobs", base=BASE)


def test_data_sets_of_the_hub_are_in_the_metadata(hub, trained, tmp_path, monkeypatch):
    parts = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: parts)
    base = json.loads((trained / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    config = settings(base, "", tmp_path / "run")
    config["data"]["train"] = {"name": "someone/reviews", "config": "zh"}
    run(RunConfig.model_validate(config))
    card = push(tmp_path / "run", "alice/tweets", base=BASE, dry_run=True).card
    assert front_matter(card)["datasets"] == ["someone/reviews"]
    assert "| someone/reviews:zh [train] |" in card


def test_a_local_folder_is_no_data_set_of_the_hub_wherever_the_push_begins(tiny_llama_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk("clients/2024")
    run(RunConfig.model_validate(settings(tiny_llama_folder, "clients/2024", tmp_path / "run")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    card = push(tmp_path / "run", "alice/tweets", base=BASE, dry_run=True).card
    assert "datasets" not in front_matter(card)
    assert "clients" not in card
    assert "| train | 2024 [train] |" in card
