"""accelerate on adapted models: weights of the base offloaded before or after attaching, and states of training."""

import accelerate
import pytest
import torch
from accelerate.hooks import attach_execution_device_hook, remove_hook_from_submodules
from references import DEFAULTS, METHOD_CELLS, adapted, assert_close, of_each_kind
from tiny import perturb, random_token_ids, tiny_model

from peftly import METHODS, LoRA, attach, detach, merge, save_adapter, trainable_parameters
from peftly.errors import AdapterError, MethodError

IDS = torch.tensor(random_token_ids([9, 9]))
CPU = torch.device("cpu")
MIXED = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}


def cpu(model, folder):
    accelerate.cpu_offload(model, CPU)


def disk(model, folder):
    accelerate.disk_offload(model, folder, CPU)


def buffers(model, folder):
    accelerate.cpu_offload(model, CPU, offload_buffers=True)


def mixed(model, folder):
    device_map = MIXED | {"model.rotary_emb": "cpu", "lm_head": "disk"}
    if hasattr(model.model, "peftly"):  # a prefix
        device_map["model.peftly"] = "disk"
    accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=folder, force_hooks=True)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("offload", [cpu, disk, buffers, mixed])
@pytest.mark.parametrize(("architecture", "method"), of_each_kind(METHOD_CELLS))
def test_a_base_offloaded_after_attaching_answers_as_before(architecture, method, offload, tmp_path):
    if offload is mixed and architecture != "llama":
        pytest.skip("the device map is that of a llama")
    model, _ = adapted(architecture, method, torch.float32)
    expected = logits(model)
    save_adapter(model, tmp_path / "before")
    offload(model, tmp_path / "weights")
    assert torch.equal(logits(model), expected)
    assert next(iter(trainable_parameters(model).values())).requires_grad
    save_adapter(model, tmp_path / "after")
    file = "adapter_model.safetensors"
    assert (tmp_path / "after" / file).read_bytes() == (tmp_path / "before" / file).read_bytes()
    detach(model)
    assert torch.equal(logits(model), logits(tiny_model(architecture, torch.float32)))


@pytest.mark.parametrize("offload", [cpu, disk])
@pytest.mark.parametrize(("architecture", "method"), of_each_kind(METHOD_CELLS))
def test_an_adapter_on_an_offloaded_base_answers_and_trains_as_on_another(architecture, method, offload, tmp_path):
    plain, offloaded = (tiny_model(architecture, torch.float32) for _ in range(2))
    offload(offloaded, tmp_path / "weights")
    for model in (plain, offloaded):
        attach(model, METHODS[method].config(**DEFAULTS[method]))
        perturb(trainable_parameters(model).values())
    assert torch.equal(logits(offloaded), logits(plain))
    for model in (plain, offloaded):
        model(IDS, labels=IDS).loss.backward()
    pairs = zip(trainable_parameters(offloaded).values(), trainable_parameters(plain).values(), strict=True)
    for actual, expected in pairs:
        assert_close(actual.grad, expected.grad, 1e-6)
    remove_hook_from_submodules(offloaded)
    assert torch.equal(logits(offloaded), logits(plain))
    detach(offloaded)
    assert torch.equal(logits(offloaded), logits(tiny_model(architecture, torch.float32)))


def test_the_weights_of_adapted_layers_are_read_under_the_hooks_of_accelerate():
    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)).eval()

    plain, hooked = model(), model()
    attach_execution_device_hook(hooked, "cpu")
    for module in (plain, hooked):
        attach(module, LoRA(rank=2, target_modules=["out_proj", "linear1"]))
        perturb(trainable_parameters(module).values(), scale=1.0)
    x = torch.randn(2, 5, 16)
    assert torch.equal(hooked(x), plain(x))
    assert not torch.equal(plain(x), model()(x))
    remove_hook_from_submodules(hooked)
    assert torch.equal(hooked(x), plain(x))
    assert torch.equal(detach(hooked)(x), model()(x))


def test_module_copies_stay_trainable_when_the_base_is_offloaded_after_attaching(tmp_path):
    plain, offloaded = (tiny_model("llama", torch.float32) for _ in range(2))
    for model in (plain, offloaded):
        attach(model, LoRA(rank=2, modules_to_save=["lm_head"]))
        perturb(trainable_parameters(model).values())
    disk(offloaded, tmp_path / "weights")
    for model in (plain, offloaded):
        optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert torch.equal(logits(offloaded), logits(plain))


@pytest.mark.parametrize("offload", [cpu, disk])
def test_merging_an_offloaded_base_is_refused_in_one_line(offload, tmp_path):
    model, _ = adapted("llama", "lora", torch.float32)
    expected = logits(model)
    offload(model, tmp_path / "weights")
    with pytest.raises(MethodError, match=r"q_proj is on disk: open the base without a device_map") as refused:
        merge(model)
    assert "\n" not in str(refused.value)
    assert torch.equal(logits(model), expected)
    remove_hook_from_submodules(model)
    assert_close(logits(merge(model)), expected, 1e-5)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "full"])
def test_the_saved_state_of_an_accelerator_continues_a_training_bit_for_bit(method, tmp_path):
    def prepared():
        accelerator = accelerate.Accelerator(cpu=True)
        model = attach(tiny_model("llama", torch.float32), METHODS[method].config(**DEFAULTS[method]))
        optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=0.01)
        return accelerator, *accelerator.prepare(model, optimizer)

    def steps(accelerator, model, optimizer):
        for _ in range(2):
            accelerator.backward(model(IDS, labels=IDS).loss)
            optimizer.step()
            optimizer.zero_grad()

    run = prepared()
    steps(*run)
    run[0].save_state(str(tmp_path))
    steps(*run)
    again = prepared()
    again[0].load_state(str(tmp_path))
    steps(*again)
    expected = trainable_parameters(run[1])
    assert all(torch.equal(value, expected[name]) for name, value in trainable_parameters(again[1]).items())


def test_an_adapter_inside_a_preloaded_block_answers_and_says_how_it_can_be_saved(tmp_path):
    model, _ = adapted("llama", "lora", torch.float32)
    expected = logits(model)
    accelerate.cpu_offload(model, CPU, preload_module_classes=["LlamaDecoderLayer"])
    assert torch.equal(logits(model), expected)
    with pytest.raises(AdapterError, match=r"first call accelerate\.hooks\.remove_hook_from_submodules\(model\)"):
        save_adapter(model, tmp_path / "adapter")
    remove_hook_from_submodules(model)
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(model), expected)
