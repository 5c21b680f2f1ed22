"""Properties that every adapted model has, each as one function that checks it on one cell of the matrix."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from matrix import (
    ADAPTERS,
    TEXTS,
    TRAINED,
    AdaptedCell,
    Cell,
    Results,
    adapted_cell,
    bare_model,
    batch_of,
    change_of_logits,
    flat,
    results_of,
)
from model_state import observable_state
from references import assert_close
from tiny import tiny_model

from peftly import (
    METHODS,
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
from peftly.injection.virtual_tokens import max_virtual_tokens
from peftly.kernels.packed_attention import supports_packing, use_packed_attention


@dataclass(frozen=True)
class Property:
    """One property and the cells that it is about."""

    check: Callable[..., None]
    applies: Callable[[Cell], bool]


PROPERTIES: dict[str, Property] = {}


def about(applies: Callable[[Cell], bool] = lambda cell: True):
    """Register a check under its name, for the cells for which `applies` is true."""

    def register(check):
        PROPERTIES[check.__name__] = Property(check, applies)
        return check

    return register


def checks_of(cells: list[Cell]) -> list:
    """Return a parameter of pytest for every property of every cell; those of one cell follow one another."""
    return [
        pytest.param(cell, name, id=f"{cell}-{name}")
        for cell in cells
        for name, found in PROPERTIES.items()
        if found.applies(cell)
    ]


def check(cell: Cell, name: str, folder: Path) -> None:
    """Check one property on one cell, with an empty folder for files."""
    needs_folder = name == "a_file_holds_the_whole_adapter"
    PROPERTIES[name].check(adapted_cell(cell), *([folder] if needs_folder else []))


def _decodes(cell):
    return cell.task in ("causal_lm", "seq2seq_lm")


def _is_encoder(cell):
    return cell.architecture in ("bert", "roberta", "distilbert")


def _may_be_padded_on_the_left(cell):
    """Whether a left-padded text has the positions of its tokens: in decoders, not in encoders as the base has them.

    T5 has relative positions.
    """
    return cell.architecture in ("t5", "mt5") or not (_is_encoder(cell) or cell.task == "seq2seq_lm")


def _packs(cell):
    return supports_packing(bare_model(cell.task, cell.architecture))


def _shares_positions(cell):
    return cell.method == "full" and cell.architecture in ("t5", "mt5")


def _bound(model):
    return 1e-10 if model.dtype == torch.float64 else 2e-5


def assert_equals_singles(found: Results, singles: list[Results], model) -> None:
    """Compare the results of a batch with the results of each of its examples alone."""
    bound = _bound(model)
    assert_close(found.losses, torch.cat([single.losses for single in singles]), bound)
    assert_close(found.logits, torch.cat([single.logits for single in singles]), bound)
    in_fp32 = "RMSNorm" in str(model)  # the class computes in fp32
    bound = 1e-6 if in_fp32 else 10 * bound
    assert_close(flat(found.gradients), sum(flat(single.gradients) for single in singles), bound)


@about()
def only_tensors_of_the_adapter_are_trained(cell: AdaptedCell):
    trained = trainable_parameters(cell.model)
    assert trained
    assert all(".peftly.own." in name for name in trained)
    assert len({id(parameter) for parameter in trained.values()}) == len(trained)
    assert cell.trained_dtypes == {torch.float32}


@about()
def a_fresh_adapter_changes_the_logits_as_registered(cell: AdaptedCell):
    assert (cell.initial_change < 1e-6) == METHODS[cell.cell.method].identity_at_init


@about()
def training_lowers_the_loss(cell: AdaptedCell):
    assert cell.losses[-1] < cell.losses[0]


@about()
def training_moves_every_tensor(cell: AdaptedCell):
    assert cell.unmoved == []


@about()
def the_adapter_changes_the_logits(cell: AdaptedCell):
    assert change_of_logits(cell.model, cell.task) > 1e-3


@about()
def every_tensor_has_a_gradient(cell: AdaptedCell):
    assert [name for name, gradient in cell.singles[1].gradients.items() if gradient.abs().sum() == 0] == []


@about()
def right_padding_changes_nothing(cell: AdaptedCell):
    assert_equals_singles(results_of(cell.model, cell.task, TRAINED, "right"), cell.singles, cell.model)


@about(_may_be_padded_on_the_left)
def left_padding_changes_nothing(cell: AdaptedCell):
    assert_equals_singles(results_of(cell.model, cell.task, TRAINED, "left"), cell.singles, cell.model)


@about(_decodes)
def right_padding_changes_nothing_without_a_cache(cell: AdaptedCell):
    found = results_of(cell.model, cell.task, TRAINED, "right", use_cache=False)
    assert_equals_singles(found, cell.singles, cell.model)


@about(lambda cell: _decodes(cell) and _may_be_padded_on_the_left(cell))
def left_padding_changes_nothing_without_a_cache(cell: AdaptedCell):
    found = results_of(cell.model, cell.task, TRAINED, "left", use_cache=False)
    assert_equals_singles(found, cell.singles, cell.model)


@about(_packs)
def packing_changes_nothing(cell: AdaptedCell):
    _assert_packed_equals_singles(cell, TRAINED, gradient_checkpointing=False)


@about(_packs)
def packing_with_gradient_checkpointing_changes_nothing(cell: AdaptedCell):
    _assert_packed_equals_singles(cell, TRAINED, gradient_checkpointing=True)


@about(_packs)
def packing_with_a_shared_beginning_changes_nothing(cell: AdaptedCell):
    _assert_packed_equals_singles(cell, [1, 1, 1], gradient_checkpointing=False)


def _assert_packed_equals_singles(cell, indices, *, gradient_checkpointing):
    """Also compare how many columns the blocks get: a beginning that all examples share stands there once."""
    model, hooks = cell.model, cell.model._peftly.hooks.text
    virtual_tokens, is_encoder = max_virtual_tokens(hooks), hooks.role == "encoder"
    with (
        training_mode(model, gradient_checkpointing=gradient_checkpointing),
        use_packed_attention(model),
        _shapes_at_blocks(model) as shapes,
    ):
        found = results_of(model, cell.task, indices)
    assert_equals_singles(found, [cell.singles[index] for index in indices], model)
    shared = 0 if is_encoder else virtual_tokens + (len(TEXTS[1]) - 1) * (indices == [1, 1, 1])
    tokens = sum(len(TEXTS[index]) + virtual_tokens for index in indices)
    assert set(shapes) == {(1, tokens - 2 * shared)}


@contextmanager
def _shapes_at_blocks(model) -> Iterator[list[tuple[int, int]]]:
    """Record the batch size and the length of every input of the blocks of a model."""
    shapes = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:2])))
        for block in blocks_of(model)
    ]
    try:
        yield shapes
    finally:
        for hook in hooks:
            hook.remove()


@about(_decodes)
def a_cache_continues_after_three_tokens(cell: AdaptedCell):
    _assert_continues(cell, 3, "right")


@about(lambda cell: cell.task == "causal_lm")
def a_cache_continues_inside_left_padding(cell: AdaptedCell):
    _assert_continues(cell, 14, "left")


def _assert_continues(cell, split, side):
    """Compare losses of examples that come in two pieces, the second after the keys and values of the first."""
    model, is_seq2seq = cell.model, cell.task == "seq2seq_lm"
    inputs, losses_of = batch_of(cell.task, TRAINED, side)
    key = "decoder_input_ids" if is_seq2seq else "input_ids"
    mask = {} if is_seq2seq else {"attention_mask": inputs["attention_mask"][:, :split]}
    with torch.no_grad():
        first = model(**inputs | mask | {key: inputs[key][:, :split]}, use_cache=True)
        second = model(**inputs | {key: inputs[key][:, split:]}, past_key_values=first.past_key_values)
    assert first.past_key_values.get_seq_length() >= inputs[key].shape[1], "the second piece is in the cache"
    found = losses_of(torch.cat([first.logits, second.logits], 1))
    assert_close(found, torch.cat([single.losses for single in cell.singles]), _bound(model))


# DistilBERT's blocks read the dropout of their configuration, which cannot be switched off from outside.
@about(lambda cell: cell.architecture != "distilbert")
def gradient_checkpointing_changes_nothing(cell: AdaptedCell):
    model = copy.deepcopy(cell.model)
    model.gradient_checkpointing_enable()
    model.train()
    assert_equals_singles(results_of(model, cell.task, TRAINED), cell.singles, model)


@about(lambda cell: not _shares_positions(cell))
def each_example_may_have_other_adapters(cell: AdaptedCell):
    model, singles = cell.mixed
    for side in ("right", "left") if _may_be_padded_on_the_left(cell.cell) else ("right",):
        with use_adapters(model, adapters=ADAPTERS):
            assert_equals_singles(results_of(model, cell.task, [0, 1, 2, 3], side), singles, model)


@about(lambda cell: _packs(cell) and not _shares_positions(cell))
def packed_examples_may_have_other_adapters(cell: AdaptedCell):
    model, singles = cell.mixed
    with use_packed_attention(model), use_adapters(model, adapters=ADAPTERS):
        assert_equals_singles(results_of(model, cell.task, [0, 1, 2, 3]), singles, model)


@about(_shares_positions)
def examples_with_other_adapters_are_refused(cell: AdaptedCell):
    model, _ = cell.mixed
    with pytest.raises(MethodError, match="cannot differ between them"), use_adapters(model, adapters=ADAPTERS):
        results_of(model, cell.task, [0, 1, 2, 3])


@about()
def a_file_holds_the_whole_adapter(cell: AdaptedCell, folder: Path):
    save_adapter(cell.model, folder / "adapter")
    base = tiny_model(cell.cell.architecture, task=cell.task)
    loaded = load_adapter(base, folder / "adapter", name="own")
    assert attached(loaded)["own"].config == attached(cell.model)["own"].config
    assert trainable_parameters(loaded).keys() == trainable_parameters(cell.model).keys()
    inputs, _ = batch_of(cell.task, TRAINED)
    with torch.no_grad():
        assert_close(loaded(**inputs).logits, cell.model(**inputs).logits, 1e-5)  # a file has fp32


@about()
def detach_restores_the_base(cell: AdaptedCell):
    model = cell.take_model()
    if model.can_generate():
        inputs, _ = batch_of(cell.task, [0])
        model.generate(inputs["input_ids"], max_new_tokens=2)
    detach(model)
    state = observable_state(model)
    assert [key for key in cell.state_before if cell.state_before[key] != state.get(key)] == []
    assert cell.state_before.keys() == state.keys()
