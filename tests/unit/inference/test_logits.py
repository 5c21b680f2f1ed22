import pytest
import torch
import transformers as tf
from references import token_loss
from tiny import ARCHITECTURES, VOCABULARY, padded, random_token_ids, tiny_model

from peftly import LoRA, attach, trainable_parameters
from peftly.errors import MethodError
from peftly.inference.logits import IGNORED, outputs_at
from peftly.injection.modes import evaluation_mode, training_mode
from peftly.kernels.cross_entropy import token_cross_entropy


def capped_model() -> tf.PreTrainedModel:
    """Gemma 2 soft-caps its logits after the head, which a loss that bypasses the model would lose."""
    torch.manual_seed(0)
    config = tf.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    return tf.Gemma2ForCausalLM(config).double().eval()


def model_of(name: str) -> tf.PreTrainedModel:
    return capped_model() if name == "gemma2" else tiny_model(name)


def batch_of(lengths: list[int], trained_from: list[int], side: str = "right") -> dict[str, torch.Tensor]:
    rows = random_token_ids(lengths)
    ids, mask = padded(rows, side)
    labels = torch.full_like(ids, IGNORED)
    for number, (row, start) in enumerate(zip(rows, trained_from, strict=True)):
        first = 0 if side == "right" else ids.shape[1] - len(row)
        labels[number, first + start : first + len(row)] = torch.tensor(row[start:])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model, loss) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def assert_close(actual, expected, bound):
    assert (actual - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("name", [*ARCHITECTURES, "gemma2"])
def test_equals_the_models_own_loss_and_gradients(name):
    model = model_of(name)
    bound = 1e-10 if model.dtype == torch.float64 else 1e-5
    batch = batch_of([9, 4, 7], [5, 1, 7])
    loss, count = token_loss(model, batch)
    assert count == 4 + 3 + 0
    # transformers' own loss casts to fp32, so the reference is written out.
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    torch.testing.assert_close(loss, expected, rtol=bound, atol=0)
    assert_close(gradients(model, loss), gradients(model, expected), bound)
    torch.testing.assert_close(loss.float(), count * model(**batch, use_cache=False).loss.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_on_the_left_changes_nothing(name):
    model = model_of(name)
    bound = 1e-10 if model.dtype == torch.float64 else 1e-5
    right, left = (token_loss(model, batch_of([9, 4, 7], [2, 1, 3], side))[0] for side in ("right", "left"))
    torch.testing.assert_close(left, right, rtol=bound, atol=0)
    # gemma3 computes its norms and every model its rotations in fp32, whatever the model's dtype.
    assert_close(gradients(model, left), gradients(model, right), max(bound, 1e-7))


def test_the_head_gets_labelled_positions_only_and_keeps_no_hook():
    model = tiny_model("llama")
    head = model.get_output_embeddings()
    seen = []
    probe = head.register_forward_hook(lambda _head, args, _output: seen.append(args[0].shape))
    hooks = len(head._forward_pre_hooks)
    token_loss(model, batch_of([9, 4], [5, 2]))
    assert seen == [(4 + 2, 1, 32)]
    assert len(head._forward_pre_hooks) == hooks

    with pytest.raises(ZeroDivisionError), outputs_at(model, torch.tensor([0])):
        _ = 1 / 0
    assert len(head._forward_pre_hooks) == hooks
    probe.remove()


def test_no_labelled_token_gives_zero_with_a_gradient():
    model = tiny_model("llama")
    loss, count = token_loss(model, batch_of([5, 3], [5, 3]))
    assert (loss.item(), count) == (0.0, 0)
    assert gradients(model, loss).abs().max() == 0


def test_the_first_token_is_not_trained_since_nothing_predicts_it():
    _, count = token_loss(tiny_model("llama"), batch_of([5], [0]))
    assert count == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_losses_in_chunks(dtype, monkeypatch):
    monkeypatch.setattr("peftly.kernels.cross_entropy._CHUNK_ELEMENTS", 3 * 11)
    logits = (torch.randn(8, 11, generator=torch.Generator().manual_seed(0)) * 4).to(dtype).requires_grad_()
    targets = torch.arange(8)
    losses = token_cross_entropy(logits, targets)
    wide = logits.detach().float().requires_grad_()
    expected = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    weights = torch.linspace(-1, 1, 8)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad, wide.grad.to(dtype))


def test_a_model_without_a_head_is_refused():
    body = tiny_model("llama").model
    with pytest.raises(MethodError, match="no output head"):
        token_loss(body, batch_of([5], [2]))


def dropping_model() -> tf.PreTrainedModel:
    torch.manual_seed(0)
    config = tf.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        dropout=0.5,
        attention_dropout=0.5,
    )
    return tf.OPTForCausalLM(config).eval()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_bases_dropout_is_off_in_training_and_the_adapters_is_on(checkpointing):
    batch = batch_of([9, 4], [2, 1])
    for dropout, draws in ((0.0, 1), (0.5, 4)):
        model = attach(dropping_model(), LoRA(rank=2, dropout=dropout)).eval()
        for parameter in trainable_parameters(model).values():
            torch.nn.init.normal_(parameter)
        with training_mode(model, gradient_checkpointing=checkpointing):
            losses = {token_loss(model, batch)[0].item() for _ in range(4)}
        assert len(losses) == draws
        assert not any(module.training for module in model.modules())


def test_checkpointing_gives_the_same_gradients_from_fewer_saved_tensors():
    model = attach(tiny_model("llama"), LoRA(rank=2))
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter)
    batch = batch_of([9, 4], [2, 1])
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    found, kept = [], []
    for checkpointing in (False, True):
        sizes = []
        with (
            training_mode(model, gradient_checkpointing=checkpointing),
            torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t),
        ):
            token_loss(model, batch)[0].backward()
        found.append([parameter.grad.clone() for parameter in trainable_parameters(model).values()])
        kept.append(sum(sizes))
        model.zero_grad()
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-10, atol=1e-12)
        assert plain.abs().max() > 0
    assert kept[1] < kept[0]
    assert {name: set(vars(module)) for name, module in model.named_modules()} == {
        name: set(attributes) for name, attributes in before.items()
    }


def test_evaluation_mode_gives_every_module_its_own_mode_back():
    model = tiny_model("llama")
    model.model.layers[0].train()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
