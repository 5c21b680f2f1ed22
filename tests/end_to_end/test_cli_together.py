"""Several adapters in one run: an ensemble, jobs with separate data, methods that are trained together."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import Peftly, peftly_here
from references import assert_close
from safetensors.torch import load_file

from peftly import detach, load, load_base
from peftly.errors import AdapterError
from peftly.runs.config import RunConfig
from peftly.runs.config_file import dump_config, load_config
from peftly.runs.run import run
from peftly.runs.together import run_together

FAST = ["--epochs", "4", "--learning-rate", "0.02", "--batch-size", "10"]
# In bf16, which a base is opened in where that is fast, rounding would hide what is compared here.
SETTINGS = ["--set", "train.seed=7", "--set", "dtype=float32"]


def adapter(folder: Path) -> dict:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def scores(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory, tiny_llama_folder, tweets) -> Path:
    """A run of three prompts."""
    out = tmp_path_factory.mktemp("runs") / "vote"
    flags = ["--base", tiny_llama_folder, "--data", tweets, "--test", tweets, "--out", out, *FAST]
    outcome = peftly_here("train", *flags, "--method", "prompt_tuning", "--ensemble", "3", *SETTINGS)
    assert outcome.code == 0, outcome.err
    assert "ensemble" in outcome.out
    assert "batches: examples padded to the longest" in outcome.out
    assert f"peftly evaluate {out}" in outcome.out
    return out


def test_each_member_of_an_ensemble_is_a_run(ensemble, peftly: Peftly):
    names = ["member_1", "member_2", "member_3"]
    assert sorted(file.name for file in ensemble.iterdir()) == [
        ".peftly.json",
        "config.yaml",
        *names,
        "report.html",
        "results.json",
    ]
    seeds = [yaml.safe_load((ensemble / name / "config.yaml").read_text())["train"]["seed"] for name in names]
    assert seeds == [7, 8, 9]
    rows = {name: adapter(ensemble / name)["prompt_embeddings"] for name in names}
    assert len({tuple(row.flatten().tolist()) for row in rows.values()}) == 3
    found = peftly("evaluate", ensemble / "member_2", "--json")
    assert json.loads(found.out)["accuracy"] == scores(ensemble / "member_2")["accuracy"]
    assert json.loads(found.out)["loss"] == pytest.approx(scores(ensemble / "member_2")["loss"], rel=1e-5)


def test_a_member_equals_the_same_run_trained_alone(ensemble, peftly: Peftly, tmp_path):
    done = peftly("train", ensemble / "member_3" / "config.yaml", "--out", tmp_path / "alone")
    assert (done.code, done.err) == (0, "")
    second, third, alone = (
        adapter(folder)["prompt_embeddings"]
        for folder in (ensemble / "member_2", ensemble / "member_3", tmp_path / "alone")
    )
    # Other examples share the batches, which changes the rounding: by far less than two members differ.
    assert_close(third, alone, 1e-4)
    with pytest.raises(AssertionError):
        assert_close(second, alone, 0.2)


@pytest.mark.parametrize(("head", "name"), [("transformers", "classifier"), ("mean", "pooled_head")])
def test_the_head_of_a_member_is_that_of_its_seed(head, name, peftly: Peftly, task_base, tweets, tmp_path):
    flags = [
        "--base",
        task_base("bert"),
        "--head",
        head,
        "--data",
        tweets,
        "--test",
        tweets,
        "--method",
        "lora",
        "--epochs",
        "1",
    ]
    flags += ["--set", "dtype=float32"]
    assert peftly("train", *flags, "--ensemble", "2", "--out", tmp_path / "vote").code == 0
    assert peftly("train", *flags, "--seed", "1", "--out", tmp_path / "alone").code == 0
    first, second, alone = (adapter(tmp_path / name) for name in ("vote/member_1", "vote/member_2", "alone"))
    heads = [tensor for tensor in alone if name in tensor]
    assert heads
    for tensor in alone:
        assert_close(second[tensor], alone[tensor], 1e-5)
    assert all((first[tensor] - second[tensor]).abs().max() > 1e-3 for tensor in heads if tensor.endswith("weight"))
    assert peftly("evaluate", tmp_path / "vote").code == 0


def test_an_ensemble_is_evaluated_as_one(ensemble, peftly: Peftly, tweets):
    results = json.loads((ensemble / "results.json").read_text())
    names = ["member_1", "member_2", "member_3", "untouched base", "linear probe", "ensemble"]
    assert [row["name"] for row in results["rows"]] == names
    found = json.loads(peftly("evaluate", ensemble, "--json").out)
    assert found["accuracy"] == results["rows"][-1]["accuracy"]
    assert [row["predicted"] for row in found["predictions"]] == results["rows"][-1]["predictions"]
    assert list(found["members"]) == ["member_1", "member_2", "member_3"]
    assert found["members"]["member_1"]["macro_f1"] == scores(ensemble / "member_1")["macro_f1"]
    table = peftly("evaluate", ensemble, "--data", tweets).out
    for word in ("ensemble", "member_3", "loss over labels"):
        assert word in table


@pytest.mark.parametrize("command", [["generate", "--text", "x"], ["explain"]])
def test_other_commands_ask_for_one_of_them(ensemble, peftly: Peftly, command):
    done = peftly(command[0], ensemble, *command[1:])
    assert done.code == 2
    assert "trained side by side" in done.err
    assert str(ensemble / "member_1") in done.err
    assert peftly(command[0], ensemble / "member_1", *command[1:]).code == 0


def test_a_second_run_replaces_all_of_the_first(ensemble, peftly: Peftly, tiny_llama_folder, tweets, tmp_path):
    out = tmp_path / "vote"
    flags = ["--base", tiny_llama_folder, "--data", tweets, "--out", out, "--method", "prompt_tuning", "--epochs", "1"]
    assert peftly("train", *flags, "--ensemble", "2").code == 0
    (out / "member_1" / "notes.txt").write_text("mine")
    refused = peftly("train", *flags)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert peftly("train", *flags, "--overwrite").code == 0
    assert sorted(file.name for file in (out / "member_1").iterdir()) == ["notes.txt"]
    assert not (out / "member_2").exists()
    assert (out / "adapter").is_dir()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, tiny_llama_folder, tweets) -> Path:
    """A run of two jobs with different data, methods and lengths."""
    folder = tmp_path_factory.mktemp("jobs")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"prompt": f"count {n}:", "completion": " one two"}) + "\n" for n in range(9)))
    (folder / "jobs.yaml").write_text(
        f"base: {tiny_llama_folder}\ndtype: float32\nout: {folder / 'out'}\nmethod: {{name: lora, rank: 4}}\n"
        "train: {epochs: 3, learning_rate: 0.02, batch_size: 10}\n"
        f"jobs:\n  tweets:\n    data: {{train: {tweets}, test: {tweets}}}\n    method: prompt_tuning\n"
        f"  counts:\n    data: {{train: {texts}}}\n    train: {{epochs: 2}}\n    method: {{rank: 2}}\n"
    )
    outcome = peftly_here("train", folder / "jobs.yaml")
    assert (outcome.code, outcome.err) == (0, "")
    assert "tweets: step" in outcome.out
    return folder / "out"


def test_each_job_has_its_data_method_and_length(jobs, peftly: Peftly, tmp_path):
    own = {name: yaml.safe_load((jobs / name / "config.yaml").read_text()) for name in ("tweets", "counts")}
    assert own["tweets"]["method"]["name"] == "prompt_tuning"
    assert (own["counts"]["method"]["name"], own["counts"]["method"]["rank"]) == ("lora", 2)
    assert [own[name]["train"]["epochs"] for name in own] == [3, 2]
    assert [own[name]["train"]["batch_size"] for name in own] == [10, 10]
    assert scores(jobs / "tweets")["accuracy"] is not None
    assert scores(jobs / "counts")["accuracy"] is None
    assert peftly("generate", jobs / "counts", "--prompt", "count 3:", "--max-new-tokens", "3").code == 0
    for name, tensor in own.items():
        done = peftly("train", jobs / name / "config.yaml", "--out", tmp_path / name)
        assert (done.code, done.err) == (0, ""), tensor
        for key, value in adapter(tmp_path / name).items():
            assert_close(adapter(jobs / name)[key], value, 1e-3)


def test_the_tokens_of_a_job_and_of_an_ensemble_are_shown(jobs, ensemble, peftly: Peftly):
    done = peftly("inspect", jobs, "--job", "counts")
    assert (done.code, "prompt + completion" in done.out) == (0, True), done.err
    refused = peftly("inspect", jobs)
    assert (refused.code, "the jobs tweets, counts" in refused.err) == (2, True)
    assert peftly("inspect", ensemble).code == 0


def test_the_page_of_jobs_shows_the_scores_of_each(jobs):
    page = (jobs / "report.html").read_text()
    for words in ("tweets/report.html", "counts/report.html", "accuracy", "loss", "trained side by side"):
        assert words in page
    assert "Samples" not in page
    assert "labelled" not in page


def test_the_whole_configuration_of_jobs_can_be_run_again(jobs, peftly: Peftly, tmp_path):
    done = peftly("train", jobs / "config.yaml", "--out", tmp_path / "again")
    assert (done.code, done.err) == (0, "")
    for key, value in adapter(jobs / "tweets").items():
        assert (adapter(tmp_path / "again" / "tweets")[key] == value).all()


@pytest.mark.parametrize(
    ("methods", "names"),
    [
        (
            ["prefix_tuning", {"name": "adapter", "placement": "parallel", "bottleneck_dim": 4}],
            ["prefix_tuning", "adapter"],
        ),
        (
            ["prompt_tuning", {"name": "lora", "rank": 2}, {"name": "lora", "rank": 3}],
            ["prompt_tuning", "lora_1", "lora_2"],
        ),
    ],
)
def test_methods_are_trained_together(methods, names, peftly: Peftly, tiny_llama_folder, tweets, tmp_path):
    file, out = tmp_path / "run.yaml", tmp_path / "out"
    settings = {"base": str(tiny_llama_folder), "data": {"train": str(tweets), "test": str(tweets)}, "out": str(out)}
    file.write_text(yaml.safe_dump({**settings, "method": methods, "train": {"epochs": 6, "batch_size": 10}}))
    done = peftly("train", file, "--learning-rate", "0.02")
    assert (done.code, done.err) == (0, "")
    said = dict(re.findall(r"method: (\w+): \w+, ([\d,]+) trainable of", done.out))
    assert list(said) == names
    whole = sum(int(count.replace(",", "")) for count in said.values())
    assert json.loads((out / "summary.json").read_text())["parameters"] == whole
    for name in names:
        assert (out / "adapter" / name / "adapter_model.safetensors").is_file()
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in losses if record["kind"] == "step"]
    assert losses[-1] < 0.7 * losses[0]
    again = json.loads(peftly("evaluate", out, "--json").out)
    assert again["loss"] == pytest.approx(scores(out)["loss"], rel=1e-4)
    assert [row["predicted"] for row in again["predictions"]] == [
        row["predicted"] for row in scores(out)["predictions"]
    ]
    assert peftly("generate", out, "--text", "late again").code == 0
    assert (peftly("explain", out).code == 0) == ("prompt_tuning" in names)
    assert peftly("train", out / "config.yaml", "--epochs", "1", "--overwrite", "--method", "lora").code == 0
    assert sorted(path.name for path in (out / "adapter").iterdir() if path.is_dir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"jobs": {}}, "jobs must be a mapping of names"),
        ({"jobs": {1: {}}}, "in quotes if it is a number"),
        ({"jobs": {"a": {}, "A": {}}}, "differs from another job in capitals only"),
        ({"ensemble": {"size": 2, "votes": "mean"}}, "did you mean ensemble.vote?"),
        ({"jobs": {"../a": {}}}, "'../a' cannot be the name of a job"),
        ({"jobs": {"a": {"dat": 1}}}, "jobs.a.dat is not a setting; did you mean data?; a job has base, data, method"),
        ({"jobs": {"a": {"method": ["lora", "ia3"]}}}, "jobs.a.method is a list"),
        (
            {"jobs": {"a": {"train": {"epoch": 1}}}},
            "jobs.a.train.epoch is not a setting; did you mean jobs.a.train.epochs?",
        ),
        ({"jobs": {"training": {}}}, "an adapter cannot be called 'training'"),
        ({"jobs": {"a": {}}, "ensemble": 2}, "ensemble and jobs do not go together"),
        ({"ensemble": 1}, "ensemble.size must be greater than or equal to 2"),
        ({"ensemble": 2, "method": ["lora", "ia3"]}, "the members of an ensemble have one method"),
        ({"method": []}, "method is an empty list"),
    ],
)
def test_mistakes(settings, words, peftly: Peftly, tiny_llama_folder, tweets, tmp_path):
    file = tmp_path / "run.yaml"
    whole = {"base": str(tiny_llama_folder), "data": {"train": str(tweets)}, "method": "lora", "out": "never"}
    file.write_text(yaml.safe_dump({**whole, **settings}))
    done = peftly("train", file)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("never").exists()


def test_an_ensemble_needs_labels(peftly: Peftly, tiny_llama_folder, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"line {n} of some"}) + "\n" for n in range(9)))
    flags = ["--base", tiny_llama_folder, "--data", tmp_path / "texts.jsonl", "--method", "lora", "--ensemble", "2"]
    done = peftly("train", *flags, "--out", tmp_path / "out")
    assert done.code == 2
    assert "an ensemble votes on labels" in done.err
    assert not (tmp_path / "out").exists()


def jobs_file(tmp_path, base, tweets, **more) -> Path:
    """Write a configuration of two LoRA jobs on the same data."""
    settings = {
        "base": str(base),
        "data": {"train": str(tweets)},
        "method": {"name": "lora", "rank": 2},
        "train": {"epochs": 2, "batch_size": 10, "learning_rate": 0.01},
        "jobs": {"a": {}, "b": {}},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "jobs.yaml").write_text(yaml.safe_dump({**settings, **more}))
    return tmp_path / "jobs.yaml"


def test_a_job_that_fails_costs_no_other_its_weights(peftly: Peftly, tiny_llama_folder, tweets, tmp_path):
    file = jobs_file(tmp_path, tiny_llama_folder, tweets)
    wrong = ["--set", "jobs.b.train.learning_rate=1e30", "--set", "train.epochs=1", "--set", "jobs.a.train.epochs=3"]
    done = peftly("train", file, *wrong)
    assert done.code == 2
    assert "learning rate" in done.err
    assert f"the weights of a are in {tmp_path / 'out' / 'a' / 'adapter-interrupted'}" in done.err
    assert peftly("generate", tmp_path / "out" / "a" / "adapter-interrupted", "--prompt", "late").code == 0


def test_a_job_that_is_done_is_saved_before_another_fails(peftly: Peftly, tiny_llama_folder, tweets, tmp_path):
    file = jobs_file(tmp_path, tiny_llama_folder, tweets)
    wrong = [
        "--set",
        "jobs.b.train.epochs=9",
        "--set",
        "jobs.b.train.learning_rate=1e30",
        "--set",
        "jobs.b.train.warmup_ratio=0.9",
    ]
    done = peftly("train", file, "--set", "jobs.a.train.max_steps=1", *wrong)
    assert done.code == 2
    assert (tmp_path / "out" / "a" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "a" / "adapter-interrupted").exists()
    assert all(any(folder.glob("adapter*")) for folder in (tmp_path / "out").iterdir() if folder.is_dir())


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (["--template", "{prompt:3}{text}"], "data.template marks 3"),
        (["--set", "train.optimizer=sgd", "--set", "train.learning_rate=null"], "train.learning_rate is missing"),
        (["--set", "method={name: prompt_tuning, num_virtual_tokens: 250}"], "takes 250 of them, which leaves no room"),
    ],
)
def test_a_mistake_leaves_the_run_that_was_to_be_replaced(
    mistake, words, together, peftly: Peftly, tiny_llama_folder, tweets, tmp_path
):
    file = jobs_file(tmp_path, tiny_llama_folder, tweets)
    if not together:
        settings = yaml.safe_load(file.read_text())
        del settings["jobs"]
        file.write_text(yaml.safe_dump(settings))
    assert peftly("train", file, "--epochs", "1").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    done = peftly("train", file, "--overwrite", *mistake)
    assert (done.code, words in done.err) == (2, True), done.err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_file_where_a_job_needs_its_folder(peftly: Peftly, tiny_llama_folder, tweets, tmp_path):
    file = jobs_file(tmp_path, tiny_llama_folder, tweets)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("base: x")
    (tmp_path / "out" / ".peftly.json").write_text('{"kind": "a run", "finished": true}')
    (tmp_path / "out" / "a").write_text("mine")
    done = peftly("train", file, "--overwrite")
    assert (done.code, "is a file; name a folder" in done.err) == (2, True)
    assert (tmp_path / "out" / "config.yaml").read_text() == "base: x"


def test_a_moved_folder_names_its_members_where_they_are(ensemble, peftly: Peftly, tmp_path):
    shutil.copytree(ensemble, tmp_path / "moved")
    done = peftly("generate", tmp_path / "moved", "--text", "x")
    assert str(tmp_path / "moved" / "member_1") in done.err
    assert str(ensemble) not in done.err
    with pytest.raises(AdapterError, match="open one of its folders: member_1, member_2, member_3"):
        load(tmp_path / "moved")


def test_a_member_with_another_row_format_is_refused(ensemble, peftly: Peftly, tmp_path):
    shutil.copytree(ensemble, tmp_path / "vote")
    member = tmp_path / "vote" / "member_2"
    other = ["--template", "{text} :", "--epochs", "1", "--out", member, "--overwrite"]
    assert peftly("train", member / "config.yaml", *other).code == 0
    done = peftly("evaluate", tmp_path / "vote")
    assert (done.code, "member_2 was trained with another row format" in done.err) == (2, True), done.err


def test_a_head_that_a_base_has_got_stays(task_base, tweets, tmp_path):
    base = load_base(str(task_base("bert")), task="sequence_classification", labels=("complaint", "no complaint"))
    with torch.no_grad():
        base.model.classifier.weight.fill_(0.5)
    settings = {"base": "given", "data": {"train": str(tweets)}, "method": "lora", "train": {"epochs": 1}}
    run(RunConfig.model_validate({**settings, "out": str(tmp_path / "one")}), base=base)
    run_together(RunConfig.model_validate({**settings, "ensemble": 2, "out": str(tmp_path / "two")}), base=base)
    detach(base.model)
    assert bool((base.model.classifier.weight == 0.5).all())


@pytest.mark.parametrize(
    ("flags", "place", "value"),
    [
        (["--ensemble", "4"], "ensemble", {"size": 4, "vote": "mean"}),
        (["--set", "ensemble.vote=majority"], "ensemble", {"size": 3, "vote": "majority"}),
        (["--set", "ensemble=2"], "ensemble", {"size": 2, "vote": "mean"}),
    ],
)
def test_a_flag_changes_no_other_setting_of_an_ensemble(flags, place, value, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("base: b\nout: o\ndata: {train: d}\nmethod: lora\nensemble: {size: 3, vote: mean}\n")
    sets = [flags[1]] if flags[0] == "--set" else []
    found = load_config(file, sets, {"ensemble": 4} if not sets else {})
    assert found.model_dump()[place] == value


def test_bare_values_have_settings_below_them(tiny_llama_folder, tweets, tmp_path):
    flags = {"base": "b", "data": "d", "method": "lora", "out": "o", "ensemble": 3}
    assert load_config(None, ["ensemble.vote=mean"], flags).model_dump()["ensemble"] == {"size": 3, "vote": "mean"}
    file = jobs_file(tmp_path, tiny_llama_folder, tweets, jobs={"a": {"method": "lora"}})
    assert load_config(file, ["jobs.a.method.rank=5"]).jobs["a"].method.rank == 5


@pytest.mark.parametrize("own", ["lora", {"name": "lora"}, {}])
def test_a_job_with_the_shared_method_has_its_settings(own, tiny_llama_folder, tweets, tmp_path):
    jobs = {"a": {"method": own}, "b": {"method": "ia3"}}
    found = load_config(jobs_file(tmp_path, tiny_llama_folder, tweets, jobs=jobs), ["jobs.b.method.name=lora"])
    assert (found.jobs["a"].method.rank, found.jobs["b"].method.rank) == (2, 2)
    (tmp_path / "again.yaml").write_text(dump_config(found))
    assert load_config(tmp_path / "again.yaml") == found
