"""Every method on every task and architecture. A cell is only left out for a reason that the method itself declares."""

import copy
from contextlib import contextmanager, nullcontext

import pytest
import torch
from matrix import TEXTS, batch_of, changes_the_logits, flat, losses_and_gradients
from model_state import everything
from references import DEFAULTS, assert_close
from tiny import TASKS, perturb, tiny_model

from peftly import (
    METHODS,
    LoRA,
    attach,
    attached,
    detach,
    load_adapter,
    save_adapter,
    trainable_parameters,
    use_adapters,
)
from peftly.errors import MethodError
from peftly.injection.blocks import blocks_of
from peftly.injection.modes import training_mode
from peftly.injection.virtual_tokens import chosen_count
from peftly.kernels.packed_attention import packed, packs

EVERY = [(task, architecture, method) for task, those in TASKS.items() for architecture in those for method in METHODS]


def config_of(method, architecture):
    settings = dict(DEFAULTS[method])
    if method == "selective" and architecture in ("distilbert", "bert", "roberta"):
        settings["head"] = False  # the classifier is trained anyway
    return METHODS[method].config(**settings)


def misfit(task, architecture, method):
    return METHODS[method].adapter.misfit(tiny_model(architecture, task=task))


CELLS = [cell for cell in EVERY if misfit(*cell) is None]


def in_double(model):
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


def test_the_cells_are_counted():
    left_out = {cell: misfit(*cell) for cell in EVERY if cell not in CELLS}
    print(f"\n{len(CELLS)} of {len(EVERY)} cells run; left out, by the method's own word:")
    for cell, reason in left_out.items():
        print(" ", *cell, "-", reason)
    assert len(CELLS) > 0.85 * len(EVERY)
    for (task, architecture, method), reason in left_out.items():
        with pytest.raises(MethodError) as caught:
            attach(tiny_model(architecture, task=task), config_of(method, architecture))
        assert str(caught.value) == reason


@pytest.mark.parametrize(("task", "architecture", "method"), CELLS)
def test_every_cell(task, architecture, method, tmp_path):
    model = tiny_model(architecture, task=task)
    before = everything(model)
    attach(model, config_of(method, architecture), name="own")
    in_double(model)
    learns(model, task, method)
    perturb(trainable_parameters(model).values(), scale=0.05)
    changes_the_logits(model, task)
    singles = [losses_and_gradients(model, task, [row]) for row in (0, 1, 2)]
    assert all(gradient.abs().sum() > 0 for gradient in singles[1][1].values()), "every tensor has a gradient"
    for side in sides(model, task, method):
        are_those_of_single_rows(singles, losses_and_gradients(model, task, [0, 1, 2], side), model)
    if packs(model):
        lays_end_to_end(without_dropout(copy.deepcopy(model)), task, singles)
    if task in ("causal_lm", "seq2seq_lm"):
        goes_on_from_a_cache(model, task, torch.cat([single[0] for single in singles]))
    if architecture != "distilbert":  # whose blocks cannot be checkpointed with dropout off from outside
        checkpointed = copy.deepcopy(model)
        without_dropout(checkpointed).gradient_checkpointing_enable()
        checkpointed.train()
        are_those_of_single_rows(singles, losses_and_gradients(checkpointed, task, [0, 1, 2]), model)
    keeps_rows_apart(model, task, method)
    goes_through_a_file(model, architecture, task, tmp_path)
    detach(model)
    after = everything(model)
    assert [key for key in before if before[key] != after.get(key)] == []
    assert before.keys() == after.keys()


def learns(model, task, method):
    """The loss falls on one batch, and every trained tensor moves."""
    inputs, losses_of = batch_of(task, [0, 1, 2])
    rate = 1e-3 if method in ("full", "selective") else 3e-3
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), rate)
    start = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
    found = []
    for _ in range(8):
        loss = losses_of(model(**inputs).logits).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    model.zero_grad()
    assert found[-1] < found[0]
    assert [
        name for name, parameter in trainable_parameters(model).items() if torch.equal(parameter, start[name])
    ] == []


def sides(model, task, method):
    """Where a batch may be padded. An encoder's classifier reads the first column, which must be a word."""
    if task == "sequence_classification" and model.config.model_type in ("bert", "roberta", "distilbert"):
        return ["right"]
    if method == "full" and model.config.model_type == "bart":
        with pytest.raises(MethodError, match="pad on the right"):
            losses_and_gradients(model, task, [0, 1], "left")
        return ["right"]
    return ["right", "left"]


def are_those_of_single_rows(singles, batch, model):
    bound = 1e-10 if model.dtype == torch.float64 else 1e-4
    losses, gradients = batch
    assert_close(losses, torch.cat([single[0] for single in singles]), bound)
    in_fp32 = "RMSNorm" in str(model)  # such normalisations are
    assert_close(flat(gradients), sum(flat(single[1]) for single in singles), 1e-6 if in_fp32 else 10 * bound)


def lays_end_to_end(model, task, singles):
    """Packed, with what a step keeps or computes again; and behind what all rows begin with, laid down once."""
    virtual, reads_both_ways = chosen_count(model._peftly.bodies.text), model._peftly.bodies.text.role == "encoder"
    for checkpointing, rows in ((False, [0, 1, 2]), (True, [0, 1, 2]), (False, [1, 1, 1])):
        with training_mode(model, gradient_checkpointing=checkpointing), packed(model), columns_of(model) as seen:
            found = losses_and_gradients(model, task, rows)
        are_those_of_single_rows([singles[row] for row in rows], found, model)
        shared = 0 if reads_both_ways else virtual + (len(TEXTS[1]) - 1) * (rows == [1, 1, 1])
        words = sum(len(TEXTS[row]) + virtual for row in rows)
        assert set(seen) == {(1, words - 2 * shared)}


@contextmanager
def columns_of(model):
    """What the blocks of a model are called with."""
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
        for block in blocks_of(model)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def goes_on_from_a_cache(model, task, singles):
    """The losses of rows that come in two pieces, the second beside the first's keys and values."""
    inputs, losses_of = batch_of(task, [0, 1, 2])
    words = "decoder_input_ids" if task == "seq2seq_lm" else "input_ids"
    mask = {} if task == "seq2seq_lm" else {"attention_mask": inputs["attention_mask"][:, :3]}
    with torch.no_grad():
        first = model(**inputs | mask | {words: inputs[words][:, :3]}, use_cache=True)
        second = model(**inputs | {words: inputs[words][:, 3:]}, past_key_values=first.past_key_values)
    assert first.past_key_values.get_seq_length() >= inputs[words].shape[1], "the second piece went into the cache"
    bound = 1e-10 if model.dtype == torch.float64 else 1e-4
    assert_close(losses_of(torch.cat([first.logits, second.logits], 1)), singles, bound)


def keeps_rows_apart(model, task, method):
    """Beside a second adapter: each row with its own, with both, or with none."""
    attach(model, LoRA(rank=2), name="other", seed=3)
    in_double(model)
    perturb([value for name, value in trainable_parameters(model).items() if ".other." in name], seed=4)
    rows = ["own", None, ("own", "other"), "other"]
    singles = []
    for place, row in enumerate(rows):
        with use_adapters(model, *([row] if isinstance(row, str) else row or ())):
            singles.append(losses_and_gradients(model, task, [place]))
    if method == "full" and model.config.model_type in ("t5", "mt5"):
        with pytest.raises(MethodError, match="cannot differ between them"), use_adapters(model, rows=rows):
            losses_and_gradients(model, task, [0, 1, 2, 3])
        detach(model, "other")
        return
    for side in sides(model, task, method):
        with use_adapters(model, rows=rows):
            are_those_of_single_rows(singles, losses_and_gradients(model, task, [0, 1, 2, 3], side), model)
    with packed(model) if packs(model) else nullcontext(), use_adapters(model, rows=rows):
        are_those_of_single_rows(singles, losses_and_gradients(model, task, [0, 1, 2, 3]), model)
    detach(model, "other")


def goes_through_a_file(model, architecture, task, folder):
    save_adapter(model, folder / "adapter")
    again = load_adapter(tiny_model(architecture, task=task), folder / "adapter", name="own")
    assert attached(again)["own"].config == attached(model)["own"].config
    assert trainable_parameters(again).keys() == trainable_parameters(model).keys()
    inputs, _ = batch_of(task, [0, 1, 2])
    assert_close(again(**inputs).logits, model(**inputs).logits, 1e-5)  # a file has fp32


def without_dropout(model):
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout", "layerdrop", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model
