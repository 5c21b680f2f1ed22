"""One method on one model of transformers: properties of an adapter on any model, and the outcome of their check."""

import copy
import json
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from model_inputs import Inputs, outputs_of
from torch import Tensor, nn

from peftly import (
    METHODS,
    LoRA,
    attach,
    attached,
    detach,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
)
from peftly.errors import PeftlyError
from peftly.injection import copied_modules, output_heads, training_mode

__all__ = ["CELLS", "Outcome", "check_cell", "live_modules"]

SAME, CLOSE, ROUNDED = 1e-6, 1e-5, 1e-4
"""Largest relative differences of outputs: the same weights, PEFT, and a merge in fp32."""

VANISHED = 1e-25
"""Smaller gradients of the base are zero in a model that was changed a little."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"num_virtual_tokens": 3, "init": "random"},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_dim": 8},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "p_tuning_v2": {"num_virtual_tokens": 3},
    "adapter": {"bottleneck_dim": 16},
    "lora": {"rank": 2},
    "dora": {"rank": 2},
    "selective": {"head": False, "layer_norms": True},
}
_PEFT_LIMITS = {
    "instead of calling": "PEFT has no effect on layers whose weights the model reads",
    "under other names": "PEFT loads tensors of this architecture under other names",
    "stacked experts": "PEFT takes the names of these layers for stacked experts, and has no DoRA by weight",
    "past_key_values": "PEFT leaves the prefix out for a model that takes no past_key_values",
    "modules_to_save": "PEFT takes another module for one of modules_to_save, by the end of its name",
}
"""Notes by words of the reason in the file for which PEFT cannot use it, see `peftly.adapters.peft_limits`."""
CELLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **{name: (name, lambda model, name=name: METHODS[name].config(**_SETTINGS.get(name, {}))) for name in METHODS},
    "lora with the head": ("lora", lambda model: _with_head(output_heads(model))),
}
"""Method, and settings for a model or None, by the name of the cell."""


def _with_head(heads: list[str]) -> LoRA | None:
    return LoRA(rank=2, modules_to_save=tuple(heads)) if heads else None


@dataclass
class Outcome:
    """Outcome of one cell.

    Attributes:
        kind: "passes", "refused" (at attach, with a reason), "fault", or "left out" (the cell is for other models).
        reason: one line; empty for a cell that passes.
        notes: facts about a cell that passes, as parts that PEFT has no equal of.
    """

    kind: str
    reason: str = ""
    notes: list[str] = field(default_factory=list)


class _FaultError(Exception):
    """A property that does not hold."""


def check_cell(base: Any, inputs: Inputs, name: str, live: set[str]) -> Outcome:
    """Check one method on one model.

    Args:
        base: model in evaluation mode, which stays as it is.
        inputs: inputs of the model.
        name: one of `CELLS`.
        live: see `live_modules`.
    """
    method, config_for = CELLS[name]
    check = _Check(base, inputs, method, live)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=_memory()) as folder:
        warnings.simplefilter("ignore")
        try:
            config = config_for(base)
            if config is None:
                return Outcome("left out")
            try:
                attach(check.model, config)
            except PeftlyError as error:
                return (
                    Outcome("refused", _line(error)) if check.is_untouched() else Outcome("fault", "refusal changed it")
                )
            check.run(Path(folder))
        except _FaultError as error:
            return Outcome("fault", f"{check.step}: {error}")
        except PeftlyError as error:
            return Outcome("fault", f"{check.step}: late refusal: {_line(error)}")
        except Exception as error:  # noqa: BLE001 -- any is a fault
            return Outcome("fault", f"{check.step}: {type(error).__name__}: {_line(error)} ({_where(error)})")
    return Outcome("passes", notes=check.notes)


def live_modules(base: Any, inputs: Inputs) -> set[str]:
    """Return the paths of the parameters that the outputs of a model depend on, and of their modules.

    Modules that share a parameter get one each, since some of them may never be called.
    """
    model, seen = copy.deepcopy(base), set()
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            own = parameter if parameter not in seen else nn.Parameter(parameter.detach().clone())
            setattr(module, name, own.requires_grad_(True))
            seen.add(own)
    _loss(outputs_of(model, inputs, gradients=True)).backward()
    gradients = {name: own.grad for name, own in model.named_parameters(remove_duplicate=False) if own.grad is not None}
    live = {name for name, gradient in gradients.items() if not gradient.abs().amax() < VANISHED}
    return live | {name.rpartition(".")[0] for name in live}


class _Check:
    """The steps of a check. `step` is the one that runs, and `notes` are facts for the outcome."""

    def __init__(self, base: Any, inputs: Inputs, method: str, live: set[str]) -> None:
        self.base, self.inputs, self.method, self.live = base, inputs, METHODS[method], live
        self.model = copy.deepcopy(base)
        self.expected = outputs_of(base, inputs)
        self.step, self.notes = "attach", []

    def run(self, folder: Path) -> None:
        """Run all steps.

        Raises:
            _FaultError: a property does not hold.
        """
        for step in (self.fresh, self.trained, self.saved, self.peft, self.merged, self.detached):
            self.step = step.__name__
            step(folder)

    def fresh(self, folder: Path) -> None:
        """A new adapter changes the outputs only if its method says so; a changed one always does."""
        outputs = outputs_of(self.model, self.inputs)
        if self.method.identity_at_init:
            _compare(outputs, self.expected, CLOSE)
        trained = trainable_parameters(self.model)
        perturb(trained)
        self.adapted = outputs_of(self.model, self.inputs)
        if _difference(self.adapted, self.expected) < SAME and any(map(self._is_live, trained)):
            raise _FaultError("a changed adapter leaves the outputs as they are")

    def _is_inside_copy(self, name: str) -> bool:
        """Whether a tensor changes a layer inside a module that the same adapter replaces by a copy."""
        layer = name.partition(".peftly.")[0]
        return any(layer.startswith(f"{path}.") for path in copied_modules(self.model, "default"))

    def trained(self, folder: Path) -> None:
        """Every tensor of the adapter gets a gradient, if the base reaches its layer with these inputs."""
        parameters = trainable_parameters(self.model)
        if not any(map(self._is_live, parameters)):
            self.notes.append("these inputs reach none of its layers")
            return
        _loss(outputs_of(self.model, self.inputs, gradients=True)).backward()
        idle = [name for name, parameter in parameters.items() if parameter.grad is None or not parameter.grad.any()]
        for parameter in parameters.values():
            parameter.grad = None
        # The experts that the base chooses for these inputs may not be those that the changed model chooses.
        wrong = [name for name in idle if self._is_live(name) and not re.search("expert|router", name)]
        inside = [name for name in wrong if self._is_inside_copy(name)]
        if inside:
            self.notes.append("names of modules_to_save also match modules around adapted layers, as in PEFT")
            wrong = [name for name in wrong if name not in inside]
        if wrong:
            raise _FaultError(f"no gradient at {len(wrong)} of {len(parameters)} tensors: {wrong[0]}")
        if idle:
            self.notes.append(f"layers that these inputs do not reach: {idle[0].partition('.peftly.')[0]} ...")

    def saved(self, folder: Path) -> None:
        """A saved adapter has the same outputs on another copy of the base, after a step of training."""
        with training_mode(self.model):
            outputs_of(self.model, self.inputs)  # which changes the statistics of a BatchNorm that is trained
        self.adapted = outputs_of(self.model, self.inputs)
        save_adapter(self.model, folder / "ours")
        _compare(outputs_of(self._loaded(folder / "ours"), self.inputs), self.adapted, SAME)

    def peft(self, folder: Path) -> None:
        """PEFT computes the same with our file, and we with PEFT's."""
        adapter = attached(self.model)["default"]
        if adapter.peft_type.startswith("PEFTLY_"):
            return
        if json.loads((folder / "ours" / "adapter_config.json").read_text())["peft_type"].startswith("PEFTLY_"):
            self.notes.append("PEFT leaves the prompt out for a model without a task that it knows")
            return
        if (limit := json.loads((folder / "ours" / "peftly.json").read_text()).get("peft_limit")) is not None:
            self.notes.append(next(note for words, note in _PEFT_LIMITS.items() if words in limit))
            return
        is_prompt = adapter.peft_type in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
        outputs_at = _at_text if is_prompt else outputs_of
        try:
            theirs = peft.PeftModel.from_pretrained(
                copy.deepcopy(self.base), folder / "ours", is_trainable=not is_prompt
            ).eval()
            outputs = outputs_at(theirs, self.inputs)
        except Exception as error:  # noqa: BLE001 -- of PEFT
            self.notes.append(f"PEFT cannot: {type(error).__name__}: {_line(error)}")
            return
        _compare(outputs, outputs_at(self.model, self.inputs), CLOSE)
        trained = theirs.prompt_encoder.named_parameters() if is_prompt else trainable_parameters(theirs).items()
        perturb(dict(trained), seed=5)
        outputs = outputs_at(theirs, self.inputs)
        theirs.save_pretrained(folder / "theirs")
        self.step = "from peft"
        _compare(outputs_at(self._loaded(folder / "theirs"), self.inputs), outputs, CLOSE)

    def merged(self, folder: Path) -> None:
        """A merged model has the same outputs, without any trace of the adapter."""
        if self.method.mergeable:
            merged = merge(copy.deepcopy(self.model))
            _compare(outputs_of(merged, self.inputs), self.adapted, ROUNDED)
            if modules_of(merged) != modules_of(self.base):
                raise _FaultError("the merged model has other modules than the base")

    def detached(self, folder: Path) -> None:
        """A model without its adapter is the base, bit for bit."""
        detach(self.model)
        if not self.is_untouched():
            raise _FaultError("the model differs from its base")

    def is_untouched(self) -> bool:
        """Return whether modules, tensors and outputs are those of the base."""
        ours, theirs = self.model.state_dict(), self.base.state_dict()
        return (
            modules_of(self.model) == modules_of(self.base)
            and ours.keys() == theirs.keys()
            and all(torch.equal(value, theirs[name]) or value.isnan().any() for name, value in ours.items())
            and torch.equal(outputs_of(self.model, self.inputs), self.expected)
        )

    def _loaded(self, folder: Path) -> Any:
        return load_adapter(copy.deepcopy(self.base), folder)

    def _is_live(self, name: str) -> bool:
        """Return whether the outputs of the base depend on the layer of a trained parameter, or on one in it."""
        path, _, inner = f".{name}".partition(".peftly.")
        path, inner = path.removeprefix("."), inner.partition(".copy.")[2]
        if inner:
            return f"{path}.{inner}".removeprefix(".") in self.live
        own = [attribute for attribute, _ in self.base.get_submodule(path).named_parameters(recurse=False)]
        attribute = "bias" if name.endswith(".bias") else "weight"
        return (f"{path}.{attribute}" if attribute in own else path) in self.live or not own


def modules_of(model: nn.Module) -> list[tuple[str, type, list[str]]]:
    """Return path, class and own attributes of every module of a model."""
    return [(path, type(module), sorted(vars(module))) for path, module in model.named_modules()]


def perturb(parameters: dict[str, nn.Parameter], scale: float = 0.05, seed: int = 3) -> None:
    """Add random numbers to parameters in place: at their initial values most mistakes are invisible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def _loss(outputs: Tensor) -> Tensor:
    """Return a number that depends on every output."""
    return (outputs * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(7))).sum()


def _at_text(model: Any, inputs: Inputs) -> Tensor:
    """Return the outputs at the text: PEFT returns outputs at virtual tokens, too."""
    length = inputs.get("decoder_input_ids", inputs["input_ids"]).shape[-1]
    return outputs_of(model, inputs, length=length)


def _difference(outputs: Tensor, expected: Tensor) -> float:
    if outputs.shape != expected.shape:
        return float("inf")
    return float((outputs - expected).norm() / expected.norm().clamp(min=1e-12))


def _compare(outputs: Tensor, expected: Tensor, bound: float) -> None:
    if outputs.shape != expected.shape:
        raise _FaultError(f"{outputs.numel()} outputs instead of {expected.numel()}")
    if not (difference := _difference(outputs, expected)) <= bound:
        raise _FaultError(f"the outputs are off by {difference:.1e}")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _where(error: BaseException) -> str:
    """Return the innermost place of an error in peftly, and that in any file."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/peftly/" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*ours[-1:], frames[-1]]]
    return " -> ".join(dict.fromkeys(places))


def _memory() -> str | None:
    """Return a folder in memory for files, where the machine has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
