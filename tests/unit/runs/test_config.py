import pytest
import yaml

from peftly.errors import ConfigError
from peftly.methods import METHODS, LoRA
from peftly.runs.config import RunConfig
from peftly.runs.config_file import FLAGS, dump_config, load_config
from peftly.runs.version_0_1 import RENAMED_SETTINGS

FULL = {
    "base": "smollm2-135m",
    "data": "tweets.jsonl",
    "method": "lora",
    "out": "runs/tweets",
}


def problem(overrides=(), flags=FULL, path=None) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides, flags)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_flags_alone_make_a_run():
    config = load_config(None, flags={**FULL, "epochs": 3, "learning_rate": 0.01, "template": "{text} :", "seed": 7})
    assert (config.base, config.data.train, config.out) == ("smollm2-135m", "tweets.jsonl", "runs/tweets")
    assert config.method == LoRA()
    assert (config.train.epochs, config.train.learning_rate, config.train.seed) == (3, 0.01, 7)
    assert config.data.template == "{text} :"


def test_every_flag_leads_to_a_setting():
    dumped = yaml.safe_load(dump_config(load_config(None, flags=FULL)))
    for path in FLAGS.values():
        settings = dumped
        for key in path.split("."):
            assert key in settings, path
            settings = settings[key]


def test_flags_win_over_the_file_and_set_over_both(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "base: from-file\nout: runs/a\ndata: {train: rows.csv, target: topic}\nmethod: {name: lora, rank: 4}\n"
        "train: {epochs: 2, learning_rate: 1e-3}\n"
    )
    config = load_config(
        file, ["train.epochs=9", "method.alpha=32"], {"base": "from-flag", "epochs": 5, "test": "t.csv"}
    )
    assert config.base == "from-flag"
    assert (config.data.train, config.data.target, config.data.test) == ("rows.csv", "topic", "t.csv")
    assert config.train.epochs == 9
    assert config.train.learning_rate == 0.001
    assert config.method == LoRA(rank=4, alpha=32)


def test_a_method_is_a_name_or_a_mapping():
    assert load_config(None, ["method={name: lora, rank: 16}"], FULL).method == LoRA(rank=16)
    assert load_config(None, ["method.rank=16"], FULL).method == LoRA(rank=16)
    assert load_config(None, ["method.name=prompt_tuning"], FULL).method.name == "prompt_tuning"


def test_naming_the_method_of_the_file_again_keeps_its_settings(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("base: b\nout: o\ndata: {train: d}\nmethod: {name: lora, rank: 4}\n")
    assert load_config(file, flags={"method": "lora"}).method == LoRA(rank=4)
    assert load_config(file, flags={"method": "prompt_tuning"}).method.name == "prompt_tuning"


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("Classify if the tweet is a complaint or not:", "Classify if the tweet is a complaint or not:"),
        ("Is this #tweet a complaint?", "Is this #tweet a complaint?"),
        ("#投诉 还是不是:", "#投诉 还是不是:"),
        (" Tweet: good or bad ", "Tweet: good or bad"),
        ("'a # b: '", "a # b: "),
    ],
)
def test_a_text_behind_set_is_as_it_was_typed(typed, text):
    """The colon at its end made it a mapping, and its words behind a # were lost without a word."""
    flags = {**FULL, "method": "prompt_tuning"}
    method = load_config(None, ["method.init=text", f"method.init_text={typed}"], flags).method
    assert method.init_text == text


def test_other_values_behind_set_are_yaml():
    overrides = ["train.epochs=3  # three", "train.max_grad_norm=", "train.report_to=[csv]"]
    config = load_config(None, overrides, FULL).train
    assert (config.epochs, config.max_grad_norm, config.report_to) == (3, None, ("csv",))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_dumped_loads_as_the_same(tmp_path, name):
    config = load_config(None, ["data.template='{text} → {x}'", "train.max_grad_norm=null"], {**FULL, "method": name})
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config
    assert isinstance(load_config(file).method, METHODS[name].config)


def test_python_may_give_the_parts():
    config = RunConfig(base="b", data={"train": "d"}, method=LoRA(rank=2), out="o")
    assert config.method == LoRA(rank=2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lerning_rate=1", ["train.lerning_rate is not a setting", "did you mean train.learning_rate?"]),
        ("learning_rate=1", ["learning_rate is not a setting", "did you mean train.learning_rate?"]),
        ("bse=x", ["bse is not a setting", "did you mean base?"]),
        ("data.templat=x", ["did you mean data.template?"]),
        ("method.rnk=4", ["method.rnk is not a setting", "did you mean method.rank?"]),
        ("train.zzzzzz=4", ["train.zzzzzz is not a setting; train has epochs, max_steps"]),
        ("train.epochs=many", ["train.epochs must be", "integer", "'many'"]),
        ("train.epochs=0", ["train.epochs must be greater than or equal to 1", "got 0"]),
        ("train.optimizer=adm", ["train.optimizer must be", "'adamw'", "got 'adm'"]),
        ("dtype=int8", ["dtype must be", "'bfloat16'", "'int8'"]),
        ("method.rank=-1", ["method.rank must be greater than or equal to 1", "-1"]),
        ("method=lroa", ["method 'lroa' does not exist", "did you mean lora?", "prompt_tuning, p_tuning"]),
        ("method=3", ["method must be a name", "3", "prompt_tuning, p_tuning"]),
        ("method.name=7", ["method must be a name", "prompt_tuning, p_tuning"]),
        ("base=", ["base must be", "string", "None"]),
        ("train=5", ["train must be a mapping of settings; got 5"]),
        ("base.name=x", ["base.name", "'smollm2-135m'", "no settings below it"]),
        ("epochs", ["--set takes key=value", "'epochs'"]),
        ("train.epochs=[1", ["--set train.epochs=[1", "not valid YAML"]),
        ("train=5", ["train must be", "5"]),
    ],
)
def test_a_mistake_is_named_in_one_line(override, words):
    line = problem([override])
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(("name", "setting"), RENAMED_SETTINGS.items())
def test_former_names_lead_to_settings_that_exist(name, setting):
    method = "prompt_tuning" if setting == "method.position" else "lora"
    assert problem([f"{name}=1"], {**FULL, "method": method}) == f"{name} is not a setting; use {setting}"
    settings = yaml.safe_load(dump_config(load_config(None, flags={**FULL, "method": method})))
    for key in setting.split("."):
        assert key in settings, setting
        settings = settings[key]


def test_other_names_in_jobs(tmp_path):
    file = tmp_path / "jobs.yaml"
    for train, setting in (("num_train_epochs: 3", "jobs.a.train.epochs"), ("patience: 2", "jobs.a.train.early_")):
        file.write_text(f"base: b\nout: o\nmethod: lora\ndata: {{train: d}}\njobs: {{a: {{train: {{{train}}}}}}}\n")
        assert f"is not a setting; use {setting}" in problem(flags=None, path=file)
    file.write_text("base: b\nout: o\nmethod: lora\ndata: {train: d}\njobs: {a: {train: {fp16: true}}}\n")
    assert problem(flags=None, path=file) == "jobs.a.train.fp16 is not a setting; set dtype to float16"


def test_a_validator_of_a_method_names_the_path():
    line = problem(["method={name: prompt_tuning, init: text}"])
    assert line.startswith("method: ")
    assert "init_text" in line


def test_several_mistakes_are_counted_and_the_unknown_key_comes_first():
    line = problem(["train.epochs=0", "train.sed=1"])
    assert line == "train.sed is not a setting; did you mean train.seed? (also wrong: train.epochs)"


def test_what_is_missing_is_named_with_its_flag():
    assert problem(flags={**FULL, "base": None}) == "base is missing (--base)"
    assert problem(flags={**FULL, "data": None}) == "data is missing (--data)"
    assert problem(flags={**FULL, "data": None, "test": "t"}) == "data.train is missing (--data)"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"# nothing\n", ["is empty"]),
        (b"- a\n", ["holds a list"]),
        (b"base: a\ndata: {train: b\nout: c\n", ["line 3", "not valid YAML"]),
        (b"base: a\nout: b\nbase: c\n", ["line 3", "base occurs twice"]),
        (b"base: \xff\n", ["cannot be read"]),
        (b"base: !!python/object:os.system x\n", ["line 1", "not valid YAML"]),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, content, words):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    line = problem(flags=None, path=file)
    for word in [str(file), *words]:
        assert word in line, line


def test_a_missing_file_is_named(tmp_path):
    assert "nothing.yaml does not exist" in problem(path=tmp_path / "nothing.yaml")


def test_a_file_in_place_of_the_settings_of_the_data(tmp_path):
    (tmp_path / "run.yaml").write_text("base: b\nout: o\nmethod: lora\ndata: rows.jsonl\n")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "run.yaml", ())
    expected = "data must be a mapping of settings, as in data: {train: rows.jsonl}; got 'rows.jsonl'"
    assert str(error.value) == expected
