"""`jobs`: lists of values, and bases of their own, which are trained one after the other."""

import json

import pytest
from tiny_tasks import labelled_rows, tiny_base, write_rows

from peftly.errors import ConfigError, DataError, TrainingError
from peftly.methods import PromptTuning
from peftly.runs import check_run_folder, open_run, run_together
from peftly.runs import together as together_module
from peftly.runs.config import RunConfig
from peftly.runs.config_file import dump_config, load_config
from peftly.runs.folder import is_finished, run_files
from peftly.training.trackers import KINDS

HEAD = """
base: big/bloomz-560m
data: {train: d}
out: runs/ablation
method: {name: prompt_tuning, num_virtual_tokens: 8, init: random}
"""


def jobs_of(tmp_path, text):
    file = tmp_path / "jobs.yaml"
    file.write_text(HEAD + text)
    config = load_config(file)
    stored = tmp_path / "stored.yaml"
    stored.write_text(dump_config(config))
    assert load_config(stored, stored=True) == config  # a run folder can be continued
    return config


def test_lists_make_a_job_for_each_combination(tmp_path):
    config = jobs_of(tmp_path, "jobs: {method.num_virtual_tokens: [1, 20], train.seed: [0, 1]}\n")
    assert list(config.jobs) == [f"num_virtual_tokens-{n}_seed-{s}" for n in (1, 20) for s in (0, 1)]
    assert [job.method for job in config.jobs.values()][1:3] == [
        PromptTuning(num_virtual_tokens=1, init="random"),
        PromptTuning(num_virtual_tokens=20, init="random"),
    ]
    assert [job.train.seed for job in config.jobs.values()] == [0, 1, 0, 1]
    assert config.jobs["num_virtual_tokens-20_seed-1"].out == "runs/ablation/num_virtual_tokens-20_seed-1"
    assert config.groups() == {}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{train.max_steps: [50, 100]}", ["max_steps-50", "max_steps-100"]),
        ("{train.learning_rate: [3.0e-2, 1e-05]}", ["learning_rate-0-03", "learning_rate-1e-05"]),
        ("{method.rank: [2], method: [lora, dora]}", ["rank-2_lora", "rank-2_dora"]),
        ("{method: [{init: text, init_text: 投诉}, {init: text, init_text: 好}]}", ["init-text", "init-text-2"]),
        ("{data.train: [a, A-3, a]}", ["train-a", "train-A-3", "train-a-2"]),
        ("{data.train: [a, a-2, a]}", ["train-a", "train-a-2", "train-a-3"]),
        ("{base: [a/b, Qwen2.5-0.5B]}", ["b", "Qwen2-5-0-5B"]),
        ("{data: [{train: a.jsonl}, {train: b.jsonl}]}", ["train-a-jsonl", "train-b-jsonl"]),
    ],
)
def test_names_of_combinations(tmp_path, text, names):
    assert list(jobs_of(tmp_path, f"jobs: {text}").jobs) == names


def test_a_typed_line_break_in_a_list_of_templates(tmp_path):
    config = jobs_of(tmp_path, "jobs: {data.template: ['{a}\\n{b}']}")
    assert next(iter(config.jobs.values())).data.template == "{a}\n{b}"


def test_jobs_with_bases_of_their_own(tmp_path):
    config = jobs_of(tmp_path, "jobs: {small: {base: x/a.gguf}, large: {train: {epochs: 2}}, other: {base: x/a.gguf}}")
    assert {name: list(group.jobs) for name, group in config.groups().items()} == {
        "a": ["small", "other"],
        "bloomz-560m": ["large"],
    }
    assert config.jobs["other"].out == "runs/ablation/a/other"
    assert all(group.groups() == {} for group in config.groups().values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: {train.seed: [0], a: {base: b}}", "jobs.a is a list, and jobs can differ in base, data, method, train"),
        ("jobs: {train.seed: [0], train.epochs: 3}", "jobs.train.epochs must be a list of values like the other"),
        ("jobs: {train.seed: []}", "jobs.train.seed must be a list of values like the other settings in jobs, not []"),
        ("jobs: {dtype: [float32]}", "jobs.dtype is a list, and jobs can differ in base, data, method, train, not in"),
        ("jobs: {train.sed: [1, 2]}", "jobs.sed-1.train.sed is not a setting; did you mean"),
        ("jobs: {train.seed: [[1]]}", "jobs.seed-1.train.seed must be "),
        ("jobs: {base: [x/a, y/a]}", "the bases x/a and y/a have one name, and it names a folder"),
        ("jobs: {train.seed: [" + "1, " * 1001 + "]}", "jobs has 1001 combinations of values; at most 1000 are "),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        jobs_of(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_base_on_the_command_line_for_jobs_with_several(tmp_path):
    file = tmp_path / "jobs.yaml"
    file.write_text(HEAD + "jobs: {base: [a, b]}")
    with pytest.raises(ConfigError, match="--base names one base, and the jobs of this configuration have bases of th"):
        load_config(file, flags={"base": "c"})


# --- training


@pytest.fixture
def ablation(tmp_path):
    """Configuration of two jobs on each of two bases of different size."""
    bases = [str(tiny_base("llama", tmp_path / "small")), str(tiny_base("llama", tmp_path / "large"))]
    rows = write_rows(tmp_path / "rows.jsonl", labelled_rows(2))
    file = tmp_path / "jobs.yaml"
    file.write_text(
        f"data: {{train: {rows}, max_length: 64}}\nout: {tmp_path / 'run'}\ndtype: float32\nmethod: prompt_tuning\n"
        "train: {epochs: 1, batch_size: 8, learning_rate: 1e-2}\n"
        f"jobs: {{base: {json.dumps(bases)}, method.num_virtual_tokens: [1, 3]}}\n"
    )
    return load_config(file)


def test_jobs_on_several_bases_are_compared_and_continued(ablation, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train = together_module.run_side_by_side

    def fails_on_the_second(config, **others):
        if config.out.endswith("large"):
            raise TrainingError("out of memory")
        return train(config, **others)

    monkeypatch.setattr(together_module, "run_side_by_side", fails_on_the_second)
    with pytest.raises(TrainingError, match=rf"out of memory; continue with: .* train --resume {out}"):
        run_together(ablation)
    assert (is_finished(out / "small"), is_finished(out)) == (True, False)
    with pytest.raises(ConfigError, match=rf"or continue it: .* train --resume {out}"):
        check_run_folder(out)
    monkeypatch.setattr(together_module, "run_side_by_side", train)
    lines = []
    stored = load_config(out / "config.yaml", (), {"out": str(out)}, stored=True)
    result = run_together(stored, resume=True, log=lines.append)
    assert "small: finished before" in lines
    assert "the data are those of large_num_virtual_tokens-1" in lines
    rows = {row["name"]: row for row in result.rows}
    assert [(row["base"], row["folder"]) for row in result.rows if row["folder"]] == [
        (base, f"{base}/{base}_num_virtual_tokens-{count}") for base in ("small", "large") for count in (1, 3)
    ]
    assert len([name for name in rows if name.startswith("large: ")]) == 2  # the untouched base, and its probe
    assert is_finished(out)
    page = (out / "report.html").read_text()
    assert "large/large_num_virtual_tokens-3/report.html" in page
    assert ">base</th>" in page
    job = open_run(str(out / "large" / "large_num_virtual_tokens-3"))
    assert job.config.method.num_virtual_tokens == 3
    with pytest.raises(ConfigError, match=r"holds runs that were trained side by side; name one of them: .*/small"):
        open_run(str(out))
    assert len([file for file in run_files(out) if file.name == "config.yaml"]) == 7


def test_a_missing_base_is_reported_before_anything_is_trained(ablation, tmp_path):
    jobs = {
        name: job.model_copy(update={"base": job.base.replace("large", "lost")}) for name, job in ablation.jobs.items()
    }
    with pytest.raises(Exception, match="lost"):
        run_together(ablation.model_copy(update={"jobs": jobs}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ({"data": {"train": "lost.jsonl"}}, DataError, "lost.jsonl: no such file or folder"),
        ({"train": {"report_to": ["wandb"]}}, ConfigError, "needs a package: pip install no_such_tracker"),
    ],
)
def test_what_the_last_base_lacks_is_reported_before_anything_is_trained(
    ablation, tmp_path, monkeypatch, own, error, message
):
    monkeypatch.setitem(KINDS, "wandb", KINDS["wandb"]._replace(package="no_such_tracker"))
    settings = [job.model_dump(mode="json") for job in ablation.jobs.values()]
    for key, value in own.items():
        settings[-1][key] |= value
    jobs = {name: RunConfig.model_validate(job) for name, job in zip(ablation.jobs, settings, strict=True)}
    with pytest.raises(error, match=message):
        run_together(ablation.model_copy(update={"jobs": jobs}))
    assert not (tmp_path / "run").exists()
