"""Settings of other tools: the error names the setting of peftly, in YAML, in `--set` and in Python."""

import dataclasses
import inspect

import pytest
import transformers
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from pydantic import TypeAdapter, ValidationError
from tool_settings import AXOLOTL, FORMER_TRAINING_ARGUMENTS, LLAMA_FACTORY, MS_SWIFT

from peftly import IA3, LoRA, PrefixTuning, PromptTuning, PTuning, TrainConfig
from peftly.data import DataConfig
from peftly.errors import ConfigError
from peftly.methods import METHODS
from peftly.models import Quantization
from peftly.runs.config import RunConfig
from peftly.runs.config_file import load_config
from peftly.setting_names import OTHER_NAMES, other_name

RUN = "base: b\nout: o\ndata: {train: d}\nmethod: lora\n"
SECTIONS = {"": (RunConfig,), "train": (TrainConfig,), "data": (DataConfig,), "quantization": (Quantization,)}
SECTIONS["method"] = tuple(method.config for method in METHODS.values())


def problem(*overrides, path=None) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides, None if path else {"base": "b", "out": "o", "data": "d", "method": "lora"})
    assert "\n" not in str(error.value)
    return str(error.value)


def takes(annotation, value):
    """Whether a setting of this type takes a value as it is."""
    try:
        return TypeAdapter(annotation).validate_python(value) == value
    except ValidationError:
        return False


def fields(setting):
    """The fields of a setting in the classes that have it, given its path."""
    section, _, name = setting.rpartition(".")
    return [config.model_fields[name] for config in SECTIONS[section] if name in config.model_fields]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_every_advised_setting_exists_and_takes_its_value(name):
    other = OTHER_NAMES[name]
    assert other.settings or other.note
    for setting in other.settings:
        found = fields(setting)
        assert found, setting
        if setting == "method":
            assert other.value is None or other.value in METHODS
        elif other.value is not None and setting != "quantization":
            assert any(takes(field.annotation, other.value) for field in found)
        elif other.value is not None:
            assert Quantization(kind=other.value)


@pytest.mark.parametrize("name", [*OTHER_NAMES])
def test_no_entry_hides_a_setting_of_its_own_section(name):
    """A name that is also a setting of peftly is advised only where the setting does not exist."""
    for setting in OTHER_NAMES[name].settings:
        section, _, own = setting.rpartition(".")
        assert (section, own) != ("", name)
        assert own != name or section


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=1", "train.lr is not a setting; use train.learning_rate"),
        ("lr=1", "lr is not a setting; use train.learning_rate"),
        ("train.num_train_epochs=3", "train.num_train_epochs is not a setting; use train.epochs (a whole number; for "),
        ("train.logging_steps=10", "train.logging_steps is not a setting; leave it out: metrics.jsonl in the run "),
        ("train.use_wandb=true", "train.use_wandb is not a setting; use train.report_to (wandb; "),
        ("load_in_4bit=true", "load_in_4bit is not a setting; set quantization to nf4"),
        ("train.load_in_4bit=true", "train.load_in_4bit is not a setting; set quantization to nf4"),
        ("train.load_in_4bit=false", "train.load_in_4bit is not a setting; leave it out: false is the default"),
        (
            "quantization={kind: nf4, bnb_4bit_quant_type: fp4}",
            "quantization.bnb_4bit_quant_type is not a setting; use q",
        ),
        ("train.num_warmup_steps=5", "train.num_warmup_steps is not a setting; use train.warmup_steps"),
        ("train.bf16=true", "train.bf16 is not a setting; set dtype to bfloat16"),
        ("train.per_device_eval_batch_size=8", "train.per_device_eval_batch_size is not a setting; use train.evalua"),
        (
            "train.eval_strategy=epoch",
            "train.eval_strategy is not a setting; use train.eval_steps (a number of steps; ",
        ),
        ("method.r=8", "method.r is not a setting; use method.rank"),
        ("method.lora_alpha=8", "method.lora_alpha is not a setting; use method.alpha"),
        ("lora_dropout=0.1", "lora_dropout is not a setting; use method.dropout"),
        ("method.use_dora=true", "method.use_dora is not a setting; set method to dora"),
        (
            "adapter=lora",
            "adapter is not a setting; use method (see peftly methods; qlora is lora with quantization nf4)",
        ),
        ("micro_batch_size=2", "micro_batch_size is not a setting; use train.batch_size (examples of a batch on each "),
        ("sequence_len=2048", "sequence_len is not a setting; use data.max_length"),
        ("data.cutoff_len=2048", "data.cutoff_len is not a setting; use data.max_length"),
        ("finetuning_type=lora", "finetuning_type is not a setting; use method"),
        ("template=qwen", "template is not a setting; use data.template (the prompt with its fields"),
        ("val_size=0.1", "val_size is not a setting; use data.validation_fraction (a fraction of the training rows"),
        ("data.val_set_size=0.1", "data.val_set_size is not a setting; use data.validation_fraction"),
        ("train.packng=true", "train.packng is not a setting; did you mean train.packing?"),
        ("rank=8", "rank is not a setting; did you mean method.rank?"),
        ("seed=8", "seed is not a setting; did you mean data.seed or train.seed?"),
        (
            "train.num_virtual_tokens=8",
            "train.num_virtual_tokens is not a setting; did you mean method.num_virtual_tok",
        ),
        ("train.Learning-Rate=8", "train.Learning-Rate is not a setting; did you mean train.learning_rate?"),
        ("train.LoRA-R=8", "train.LoRA-R is not a setting; use method.rank"),
        ("task_type=CAUSAL_LM", "task_type is not a setting; use task (CAUSAL_LM is causal_lm"),
    ],
)
def test_the_message_in_a_configuration(override, message, tmp_path):
    assert problem(override).startswith(message)
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    assert problem(override, path=file) == problem(override)


def test_a_setting_that_the_method_lacks_is_not_advised():
    line = problem("method={name: prompt_tuning, r: 8}")
    assert "rank" not in line
    assert line.startswith("method.r is not a setting; ")
    for method, dim in (("p_tuning", "encoder_dim"), ("prefix_tuning", "projection_dim")):
        line = problem(f"method={{name: {method}, encoder_hidden_size: 8}}")
        assert line == f"method.encoder_hidden_size is not a setting; use method.{dim}"


def test_a_setting_of_another_method_names_the_methods_that_have_it():
    line = problem("method={name: p_tuning, init_text: 对话}")
    assert line == "method.init_text is not a setting of this method; prompt_tuning, prefix_tuning, p_tuning_v2 have it"


def test_other_names_in_jobs(tmp_path):
    file = tmp_path / "jobs.yaml"
    for job, message in (
        ("train: {lr: 3}", "jobs.a.train.lr is not a setting; use jobs.a.train.learning_rate"),
        ("lora_r: 3", "jobs.a.lora_r is not a setting; use jobs.a.method.rank; a job has base, data, method, train"),
        ("data: {load_in_4bit: true}", "jobs.a.data.load_in_4bit is not a setting; set quantization to nf4"),
    ):
        file.write_text(f"{RUN}jobs: {{a: {{{job}}}}}\n")
        assert problem(path=file) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(lr=1e-4), "TrainConfig has no setting lr; use learning_rate"),
        (lambda: TrainConfig(load_in_4bit=True), "TrainConfig has no setting load_in_4bit; set quantization to nf4"),
        (lambda: TrainConfig(max_seq_length=64), "TrainConfig has no setting max_seq_length; use data.max_length (tok"),
        (lambda: LoRA(lora_alpha=16), "LoRA has no setting lora_alpha; use alpha"),
        (lambda: DataConfig(train="d", cutoff_len=9), "DataConfig has no setting cutoff_len; use max_length"),
        (
            lambda: Quantization(kind="nf4", bnb_4bit_quant_type="fp4"),
            "Quantization has no setting bnb_4bit_quant_type; use k",
        ),
    ],
)
def test_the_message_in_python(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(message)


def test_a_method_class_does_not_advise_a_setting_of_another_method():
    with pytest.raises(ConfigError, match=r"^PromptTuning has no setting r; there are name, modules_to_save, num_v"):
        PromptTuning(r=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(rnk=8), "LoRA has no setting rnk; did you mean rank?"),
        (lambda: LoRA(rank=-1, rnk=8), "LoRA has no setting rnk; did you mean rank?"),
        (lambda: LoRA(rank=0), "LoRA: rank must be greater than or equal to 1; got 0"),
        (lambda: LoRA(bias="lora"), "LoRA: bias must be 'none', 'all' or 'lora_only'; got 'lora'"),
        (lambda: LoRA(use_dora=True), "LoRA has no setting use_dora; set method to dora (in Python peftly.DoRA)"),
        (lambda: DataConfig(), "DataConfig: train is missing"),
        (lambda: TrainConfig(epochs=True), "TrainConfig: epochs: give a number, not a truth value; got True"),
    ],
)
def test_a_mistake_in_python_is_one_line(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == message


SETTINGS_OF_TOOLS = {
    transformers.Seq2SeqTrainingArguments: (TrainConfig, RunConfig, DataConfig),
    LoraConfig: (LoRA,),
    IA3Config: (IA3,),
    PromptTuningConfig: (PromptTuning,),
    PromptEncoderConfig: (PTuning,),
    PrefixTuningConfig: (PrefixTuning,),
}


@pytest.mark.parametrize("tool", SETTINGS_OF_TOOLS)
def test_every_setting_of_transformers_and_peft_has_an_answer(tool):
    own = {name for config in SETTINGS_OF_TOOLS[tool] for name in config.model_fields}
    names = {field.name for field in dataclasses.fields(tool) if not field.name.startswith("_")}
    assert len(names) > 10
    assert not [name for name in sorted(names - own) if other_name(name) is None]


def test_every_setting_of_trl_has_an_answer():
    trl = pytest.importorskip("trl")
    names = {field.name for field in dataclasses.fields(trl.SFTConfig) if not field.name.startswith("_")}
    assert not [name for name in sorted(names - OWN) if other_name(name) is None]


OWN = {name for configs in SECTIONS.values() for config in configs for name in config.model_fields}
KEYS = {
    "LLaMA-Factory": LLAMA_FACTORY,
    "axolotl": AXOLOTL,
    "ms-swift": MS_SWIFT,
    "former TrainingArguments": FORMER_TRAINING_ARGUMENTS,
    "bitsandbytes": [
        name for name in inspect.signature(transformers.BitsAndBytesConfig).parameters if name != "kwargs"
    ],
}


@pytest.mark.parametrize("tool", KEYS)
def test_every_setting_of_other_tools_has_an_answer(tool):
    assert not [name for name in KEYS[tool] if name not in OWN and other_name(name) is None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter: lora", "adapter is not a setting; use method"),
        ("datasets: [{path: tatsu-lab/alpaca, type: alpaca}]", "datasets is not a setting; use data.train"),
        ("lora_r: 8", "lora_r is not a setting; use method.rank"),
        ("load_in_4bit: true", "load_in_4bit is not a setting; set quantization to nf4"),
        (
            "stage: dpo",
            "stage is not a setting; leave it out: peftly trains on completions, labels",
        ),
        ("use_galore: false", "use_galore is not a setting; leave it out"),
        ("train: {deepspeed: ds.json}", "train.deepspeed is not a setting; use train.fsdp"),
        ("train: {optim: adamw_torch}", "train.optim is not a setting; use train.optimizer (adamw_torch is adamw, "),
    ],
)
def test_keys_of_other_tools_in_a_file(text, message, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(RUN + text + "\n")
    assert problem(path=file).startswith(message)
