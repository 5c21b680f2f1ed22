"""Steps over packed sequences have the losses and gradients of padded batches."""

import pytest
import torch
from references import CELLS, DEFAULTS, adapted, assert_close
from task_jobs import ready, trained
from tiny import perturb, tiny_model
from training_jobs import data_of, lora_model, run, steps

from peftly import METHODS, PromptTuning, attach, trainable_parameters, use_prompt_positions
from peftly.data import EncodedExample, collate, collate_packed
from peftly.errors import MethodError
from peftly.evaluation.losses import target_losses
from peftly.inference.logits import Logits, labelled_logits, tag_logits
from peftly.injection import role_of
from peftly.injection.modes import training_mode
from peftly.injection.packing import packed_call
from peftly.injection.virtual_tokens import virtual_token_ids
from peftly.kernels.packed_attention import Packing, supports_packing, use_packed_attention
from peftly.training.config import TrainConfig
from peftly.training.train import packs_examples

PREFIX = [5, 7, 9]
EXAMPLES = [
    EncodedExample([*PREFIX, 4, 6, 8, 3], [False] * 4 + [True] * 3),
    EncodedExample([*PREFIX, 11], [False, True, True, True]),
    EncodedExample([*PREFIX, 4, 2], [False] * 3 + [True] * 2),
]
TAGGED = [
    EncodedExample([1, 5, 7, 9], [True] * 4, tags=[-100, 0, 1, 1], token_type_ids=[0, 0, 1, 1]),
    EncodedExample([1, 5, 2], [True] * 3, tags=[0, 1, -100], token_type_ids=[0, 0, 0]),
    EncodedExample([1, 5, 7, 4, 6, 2], [True] * 6, tags=[1] * 5 + [-100], token_type_ids=[0] * 3 + [1] * 3),
]
PACKED_CELLS = [(architecture, method) for architecture, method in CELLS if supports_packing(tiny_model(architecture))]


def padded_losses(model, examples, logits_of: Logits = labelled_logits):
    batch = collate(examples, pad_id=0)
    with use_prompt_positions(model, batch.get("prompt_positions")):
        return target_losses(model, batch, logits_of)


def packed_losses(model, examples, logits_of: Logits = labelled_logits):
    """Return the losses of one packed sequence, and the number of its columns."""
    with use_prompt_positions(model, [example.prompt_positions for example in examples]):
        virtual_tokens = virtual_token_ids(model, len(examples))
    is_causal = role_of(model) == "decoder"
    batch = collate_packed(examples, virtual_tokens=virtual_tokens, shares_prefix=is_causal)
    packing = Packing(batch.lengths, shared=batch.shared)
    with packed_call(model, packing):
        return target_losses(model, batch.tensors, logits_of), packing.num_columns


def gradients(model, losses) -> torch.Tensor:
    weighted = (losses * torch.linspace(0.5, 2, len(losses), dtype=losses.dtype)).sum()
    found = torch.autograd.grad(weighted, list(trainable_parameters(model).values()), allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def assert_same(model, examples, logits_of: Logits = labelled_logits, columns: int | None = None):
    expected = padded_losses(model, examples, logits_of)
    expected_gradients = gradients(model, expected)
    with use_packed_attention(model):  # in the backward pass too, where blocks may be recomputed
        losses, num_columns = packed_losses(model, examples, logits_of)
        packed_gradients = gradients(model, losses)
    assert num_columns == (columns or num_columns)
    assert losses.shape == expected.shape
    bound = 1e-6 if "RMSNorm" in str(model) else 1e-9  # such norms are computed in fp32
    assert_close(losses, expected, bound)
    assert_close(packed_gradients, expected_gradients, bound)


def test_the_architectures():
    assert {"llama", "gpt2", "opt", "gemma3"} <= {architecture for architecture, _ in PACKED_CELLS}
    assert {method for _, method in PACKED_CELLS} == METHODS.keys() - {"p_tuning_v2"}


@pytest.mark.parametrize(("architecture", "method"), PACKED_CELLS)
@pytest.mark.sample(4)
def test_losses_and_gradients(architecture, method):
    model, _ = adapted(architecture, method)
    virtual = DEFAULTS[method].get("num_virtual_tokens", 0) if method != "prefix_tuning" else 0
    assert_same(model, EXAMPLES, columns=virtual + 3 + 4 + 1 + 2)
    assert_same(model, EXAMPLES[:1], columns=virtual + 7)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "prefix_tuning"])
def test_gradient_checkpointing(method):
    model, _ = adapted("llama", method)
    with training_mode(model, gradient_checkpointing=True):
        assert_same(model, EXAMPLES)


@pytest.mark.parametrize(
    "positions",
    [
        [(0, 3, 7), (0, 3, 4), (0, 3, 5)],  # the text ends at different positions
        [(3, 3, 3), (0, 1, 3), (3, 4, 4)],  # inside and after the common prefix
        [(1, 2, 2)] * 3,  # within the common prefix
        [(2, 3, 3), (2, 3, 4), (2, 2, 3)],
    ],
    ids=str,
)
def test_virtual_tokens_that_a_template_marks(positions):
    model = tiny_model("llama")
    attach(model, PromptTuning(num_virtual_tokens=3, init="random", position="template"))
    perturb(trainable_parameters(model).values())
    examples = [
        EncodedExample(example.input_ids, example.trained, prompt_positions=own)
        for example, own in zip(EXAMPLES, positions, strict=True)
    ]
    assert_same(model, examples)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "p_tuning_v2", "full"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama", "gpt2"])
def test_tags(architecture, method):
    if METHODS[method].adapter.unsupported_reason(tiny_model(architecture, task="token_classification")):
        pytest.skip("the architecture does not take the method")
    model = tiny_model(architecture, task="token_classification")
    attach(model, METHODS[method].config(**DEFAULTS[method]))
    perturb(trainable_parameters(model).values())
    model.double()
    assert_same(model, TAGGED, tag_logits)


def test_the_same_weights_after_training():
    results = []
    for packing in (True, False):
        model = lora_model(torch.float64)
        shapes = []
        model.get_decoder().layers[0].register_forward_pre_hook(
            lambda _, args, shapes=shapes: shapes.append(args[0].shape[:2]) if torch.is_grad_enabled() else None
        )
        _, result = run(model, data_of(19), packing=packing, optimizer="sgd", micro_batch_tokens=40)
        results.append((shapes, [step.loss for step in steps(result)]))
    (packed, losses), (padded, expected) = results
    assert all(batch == 1 for batch, _ in packed)
    assert any(batch > 1 for batch, _ in padded)
    assert losses == pytest.approx(expected, rel=1e-7)


def test_a_sequence_classifier_reads_a_batch(task_base, tmp_path):
    """Its hidden states are packed inside the stack only."""
    model, tokenizer, data = ready("sequence_classification", "roberta", task_base, tmp_path)
    inside, at_the_head = [], []
    model.roberta.encoder.layer[0].register_forward_pre_hook(lambda _, args: inside.append(args[0].shape[0]))
    model.classifier.register_forward_pre_hook(lambda _, args: at_the_head.append(args[0].shape[0]))
    trained(model, tokenizer, data, epochs=1, micro_batch_tokens=10_000)
    assert set(inside) == {1}
    assert max(at_the_head) > 1


def test_models_without_hooks_are_not_packed():
    """The hooks of adapters pass the packing on."""
    bare = tiny_model("llama")
    assert supports_packing(bare)
    assert not packs_examples(bare, TrainConfig())
    assert packs_examples(lora_model(), TrainConfig())
    assert not packs_examples(lora_model(), TrainConfig(packing=False))


def test_a_packed_row_needs_packed_attention():
    with pytest.raises(MethodError, match="use_packed_attention"), packed_call(model := lora_model(), Packing([3])):
        model(input_ids=torch.tensor([[5, 6, 7]]))
