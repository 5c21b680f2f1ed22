"""Bases with few positions: training, samples, evaluation and generation stay within them, virtual tokens included."""

import pytest
import torch
from tiny_tasks import tiny_base, write_rows

from peftly import attach, evaluate, load_base, load_data
from peftly.errors import ConfigError, DataError, MethodError
from peftly.inference import classify, generate
from peftly.methods import LoRA, PrefixTuning, PromptTuning
from peftly.models import max_answer_tokens, max_input_tokens
from peftly.runs import JobsConfig, RunConfig, held_out_split, open_run, run, run_together
from peftly.training import TrainConfig, check_trainable

NUM_POSITIONS = 40
CHANGES = {
    "gpt2": {"n_positions": NUM_POSITIONS},
    "llama": {"max_position_embeddings": NUM_POSITIONS},
    "bert": {"max_position_embeddings": NUM_POSITIONS},
    "roberta": {"max_position_embeddings": NUM_POSITIONS + 1},
    "distilbert": {"max_position_embeddings": NUM_POSITIONS},
    "bart": {"max_position_embeddings": NUM_POSITIONS},
    "t5": {},
}
TASKS = {"gpt2": "causal_lm", "llama": "causal_lm", "bart": "seq2seq_lm", "t5": "seq2seq_lm"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: tiny_base(name, folder / name, **changes) for name, changes in CHANGES.items()}


def opened(folder, method=None):
    task = TASKS.get(folder.name, "sequence_classification")
    labels = ("a", "b") if task == "sequence_classification" else ()
    base = load_base(str(folder), dtype="float32", task=task, labels=labels)
    if method is not None:
        attach(base.model, method, tokenizer=base.tokenizer)
    base.model.eval()
    return base


def works(model, length, answer_length=2):
    ids = torch.full((1, length), 5)
    answer = {"labels": torch.full((1, answer_length), 5)} if model.config.is_encoder_decoder else {}
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **answer)
    except (IndexError, RuntimeError, MethodError):
        return False
    return True


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, None) for name in CHANGES),
        *((name, PromptTuning(num_virtual_tokens=5)) for name in CHANGES),
        *((name, PrefixTuning(num_virtual_tokens=5)) for name in CHANGES if name != "distilbert"),
    ],
)
def test_the_number_of_tokens_is_what_the_model_reads(bases, name, method):
    model = opened(bases[name], method).model
    limit = max_input_tokens(model)
    if limit is None:
        assert works(model, 3 * NUM_POSITIONS)
    else:
        assert (works(model, limit), works(model, limit + 1)) == (True, False)
    if model.config.is_encoder_decoder and (answer := max_answer_tokens(model)) is not None:
        assert (works(model, 5, answer), works(model, 5, answer + 1)) == (True, False)


@pytest.mark.parametrize("name", ["gpt2", "bart", "llama"])
@pytest.mark.parametrize("method", [None, PromptTuning(num_virtual_tokens=5)])
def test_a_completion_ends_at_the_last_position(bases, name, method):
    base = opened(bases[name], method)
    base.model.generation_config.eos_token_id = base.tokenizer.eos_token = None
    limit = max_input_tokens(base.model)
    prompts = ["late " * 8, "late", "the app " * 4]
    together = generate(base.model, base.tokenizer, prompts, max_new_tokens=60)
    assert together == [generate(base.model, base.tokenizer, prompt, max_new_tokens=60)[0] for prompt in prompts]
    if limit is not None:
        with pytest.raises(DataError, match=rf"tokens, and the model has positions for {limit}; give a shorter prompt"):
            generate(base.model, base.tokenizer, "late " * 60)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("gpt2", LoRA(rank=2)),
        ("gpt2", PromptTuning(num_virtual_tokens=5)),
        ("bart", PrefixTuning(num_virtual_tokens=5)),
        ("bert", PromptTuning(num_virtual_tokens=5)),
    ],
)
def test_a_run_with_long_rows_stays_within_the_positions(bases, name, method, tmp_path):
    if name == "bert":
        rows = [{"text": "late again " * 30 + str(n), "label": "no" if n % 2 else "yes"} for n in range(8)]
    else:
        rows = [{"prompt": "late again " * 30 + f"{n} :", "completion": f"great {n}"} for n in range(8)]
    config = RunConfig(
        base=str(bases[name]),
        data={"train": str(write_rows(tmp_path / "rows.jsonl", rows)), "validation_fraction": 0.25},
        method=method,
        train={"epochs": 1, "batch_size": 4},
        out=str(tmp_path / "run"),
        dtype="float32",
        device="cpu",
    )
    lines = []
    result = run(config, log=lines.append)
    limit = NUM_POSITIONS - getattr(method, "num_virtual_tokens", 0)
    beside = " beside virtual tokens" if limit < NUM_POSITIONS else ""
    assert f"max_length is {limit} instead of 512: the base has no more positions{beside}" in lines
    reopened = open_run(result.out)
    assert reopened.config.data.max_length == limit
    split = held_out_split(reopened, None)
    assert max(len(encoded.input_ids) for encoded in split.split.encoded) <= limit
    evaluate(reopened.model, reopened.tokenizer, split.split, split.row_format)
    if name == "bert":
        assert len(classify(reopened.model, reopened.tokenizer, split.split.examples[:1], max_length=limit)) == 1


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_runs_side_by_side_have_the_positions_that_their_own_virtual_tokens_leave(bases, name, tmp_path):
    methods = {"prefix": PrefixTuning(num_virtual_tokens=5), "prompt": PromptTuning(num_virtual_tokens=3)}
    methods = {"first": LoRA(rank=2), **methods, "last": LoRA(rank=2)}
    rows = [{"text": "late again " * 30 + str(n), "label": "no" if n % 2 else "yes"} for n in range(8)]
    data = {"train": str(write_rows(tmp_path / "rows.jsonl", rows)), "validation_fraction": 0.25}
    jobs = {
        job: RunConfig(
            base=str(bases[name]),
            data=data,
            method=method,
            train={"epochs": 1, "batch_size": 4, "learning_rate": 0.01},
            out=str(tmp_path / "jobs" / job),
            dtype="float32",
            device="cpu",
        )
        for job, method in methods.items()
    }
    together = run_together(JobsConfig(jobs=jobs, out=str(tmp_path / "jobs")))
    for job, method in methods.items():
        limit = NUM_POSITIONS - getattr(method, "num_virtual_tokens", 0)
        assert open_run(tmp_path / "jobs" / job).config.data.max_length == limit
        alone = run(jobs[job].model_copy(update={"out": str(tmp_path / "alone" / job)}))
        assert together.runs[job].training.best.loss == pytest.approx(alone.training.best.loss, rel=1e-4)


def test_rows_past_the_positions_are_one_line_before_a_training(bases):
    base = opened(bases["gpt2"], PromptTuning(num_virtual_tokens=5))
    short = [{"prompt": f"late {n} :", "completion": "great"} for n in range(4)]
    long = [{"prompt": "late again " * 30 + f"{n} :", "completion": f"great {n}"} for n in range(4)]
    data = load_data(short, base.tokenizer, validation=long)
    with pytest.raises(DataError, match=r"the model reads at most 35; set data\.max_length to 35"):
        check_trainable(base.model, data, TrainConfig())


def test_virtual_tokens_must_leave_room_for_text(bases, tmp_path):
    rows = [{"prompt": f"late {n} :", "completion": f"great {n}"} for n in range(4)]
    config = RunConfig(
        base=str(bases["gpt2"]),
        data={"train": str(write_rows(tmp_path / "rows.jsonl", rows))},
        method=PromptTuning(num_virtual_tokens=38),
        out=str(tmp_path / "run"),
    )
    with pytest.raises(
        ConfigError, match=r"the base has 40 positions, and method\.num_virtual_tokens takes 38 of them"
    ):
        run(config)
