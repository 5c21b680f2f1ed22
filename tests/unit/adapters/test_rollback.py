"""A load or an attachment that fails, wherever and by whatever exception, leaves the model exactly as it was."""

import copy
import signal
import sys

import pytest
import torch
from adapter_files import without_checksums
from model_state import observable_state
from references import ARCHITECTURE_OF, DEFAULTS
from tiny import perturb, tiny_model

import peftly
from peftly import (
    IA3,
    DoRA,
    LoRA,
    PTuning,
    attach,
    attached,
    detach,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
)
from peftly.adapters import active_adapters
from peftly.errors import AdapterError
from peftly.methods import METHODS

IDS = torch.tensor([[5, 6, 7, 8]])
SOURCE = peftly.__path__[0]


class Interrupt:
    """Raise Ctrl-C before one line of peftly: context manager that counts the lines that run inside its block.

    Python reports the line of a `with` statement again before the block's end, so an exception there skips the end. The
    gradient mode and the handler of Ctrl-C, which such a block sets, are therefore restored for the tests that follow.
    """

    def __init__(self, line: int | None) -> None:
        self.line, self.count = line, 0

    def __enter__(self):
        self._before = torch.is_grad_enabled(), signal.getsignal(signal.SIGINT)
        sys.settrace(self._enter_function)
        return self

    def __exit__(self, *_):
        sys.settrace(None)
        torch.set_grad_enabled(self._before[0])
        signal.signal(signal.SIGINT, self._before[1])

    def _enter_function(self, frame, event, _):
        file = frame.f_code.co_filename
        # No real Ctrl-C comes in the mode of torch that limits the allocation; in modes.py a lock would stay held.
        is_watched = file.startswith(SOURCE) and not file.endswith(("/allocation.py", "/modes.py"))
        return self._next_line if is_watched else None

    def _next_line(self, frame, event, _):
        if event == "line":
            self.count += 1
            if self.count == self.line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._next_line


def saved(method, folder, architecture="llama"):
    model = attach(tiny_model(architecture, torch.float32), method)
    perturb(trainable_parameters(model).values())
    return save_adapter(model, folder)


def full_state(model):
    state = observable_state(model)
    state["active"] = active_adapters(model) if attached(model) else None
    state["adapters"] = list(attached(model).items())
    return state


def lines_of(call) -> int:
    with Interrupt(None) as counted:
        call()
    return counted.count


@pytest.mark.parametrize("method", ARCHITECTURE_OF)
@pytest.mark.parametrize("others", [False, True], ids=["first adapter", "second adapter"])
@pytest.mark.sample(4)
def test_an_interrupted_load_changes_nothing(method, others, tmp_path):
    architecture = ARCHITECTURE_OF[method]
    folder = saved(METHODS[method].config(**DEFAULTS[method]), tmp_path / "adapter", architecture)
    model = tiny_model(architecture, torch.float32)
    next(model.parameters()).requires_grad_(False)
    if others:
        attach(model, LoRA(rank=2, target_modules=".*(proj|c_attn).*"), name="other")
    before = full_state(model)
    for _ in range(2):  # the first load hashes the base, and later ones do not
        total = lines_of(lambda: load_adapter(model, folder))
        detach(model, "default")
        assert full_state(model) == before
    for line in range(1, total - 5, total // 12):
        with pytest.raises(KeyboardInterrupt), Interrupt(line):
            load_adapter(model, folder)
        assert full_state(model) == before, f"interrupted before line {line} of {total}"
    assert attached(load_adapter(model, folder))["default"].config.name == method


def test_an_interrupted_attachment_changes_nothing():
    model = tiny_model("llama", torch.float32)
    before = full_state(model)
    for _ in range(2):  # the first attachment searches the source code of the modules
        total = lines_of(lambda: attach(model, LoRA(rank=2)))
        detach(model)
    for line in range(1, total - 5, total // 12):
        with pytest.raises(KeyboardInterrupt), Interrupt(line):
            attach(model, LoRA(rank=2))
        assert full_state(model) == before, f"interrupted before line {line} of {total}"


def test_of_several_adapters_all_or_none_are_loaded(tmp_path):
    both = tiny_model("llama", torch.float32)
    for name in ("first", "prompt", "last"):
        attach(both, PTuning(num_virtual_tokens=2) if name == "prompt" else LoRA(rank=2), name=name)
    save_adapter(both, tmp_path)
    without_checksums(tmp_path / "last")
    tensors = tmp_path / "last" / "adapter_model.safetensors"
    sound = tensors.read_bytes()
    tensors.write_bytes(sound[:-1])
    model = attach(tiny_model("llama", torch.float32), LoRA(rank=2), name="own")
    before = full_state(model)
    with pytest.raises(AdapterError, match=r"last/adapter_model\.safetensors is damaged"):
        load_adapter(model, tmp_path)
    assert full_state(model) == before
    tensors.write_bytes(sound)
    assert list(attached(load_adapter(model, tmp_path))) == ["own", "first", "prompt", "last"]


MERGED = {
    "lora": ("llama", {"one": LoRA(rank=2)}),
    "in bf16": ("gpt2", {"one": LoRA(rank=2), "two": LoRA(rank=3)}),
    "dora": ("llama", {"one": DoRA(rank=2)}),
    "ia3": ("gpt2", {"one": IA3()}),
    "copies": ("llama", {"one": LoRA(rank=2, modules_to_save=("layers.1",))}),
    "untied": ("gpt2", {"one": LoRA(rank=2, target_modules=("lm_head",))}),
    "weight readers": ("bloom", {"one": LoRA(rank=2)}),
    "others stay": ("llama", {"one": LoRA(rank=2), "other": PTuning(num_virtual_tokens=2)}),
}


def adapted_for_merge(case):
    architecture, adapters = MERGED[case]
    model = tiny_model(architecture, torch.bfloat16 if case == "in bf16" else torch.float32)
    for name, config in adapters.items():
        attach(model, config, name=name)
    perturb(trainable_parameters(model).values())
    return model


@pytest.mark.filterwarnings("ignore:untied, as merging")
@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("case", MERGED)
@pytest.mark.sample(4)
def test_an_interrupted_merge_changes_nothing(case, on_disk, monkeypatch):
    if on_disk:
        monkeypatch.setattr("peftly.adapters.rollback.USED_SHARE", 0)
    model = adapted_for_merge(case)
    names = [name for name in attached(model) if name != "other"]
    only = {"name": "one"} if len(names) == 1 else {}
    merge(copy.deepcopy(model), **only)  # the first merge of a process runs lines that later ones do not
    total = lines_of(lambda: merge(copy.deepcopy(model), **only))
    before = full_state(model)
    for line in range(total // 30, total - 5, total // 12):
        with pytest.raises(KeyboardInterrupt), Interrupt(line):
            merge(model, **only)
        assert full_state(model) == before, f"interrupted before line {line} of {total}"
    merge(model, **only)
    assert ("other" in MERGED[case][1]) == hasattr(model, "_peftly")
