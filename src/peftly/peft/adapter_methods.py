"""PEFT's methods of a model that add, choose, merge and remove adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from peftly.adapters import active_adapters, attached, detach, set_adapters, use_adapters
from peftly.errors import MethodError
from peftly.merging.combine import combine
from peftly.peft.attaching import attach_new, finish_loading, load_new
from peftly.peft.config import PeftConfig
from peftly.peft.merging import merged
from peftly.peft.state_dict import IncompatibleKeys, adapter_source, load_peft_weights, set_peft_model_state_dict
from peftly.peft.trainable import require_grad, train_only
from peftly.peft.translation import config_of
from peftly.peft.wrapping import is_wrapped, wrapping_of
from peftly.utils import warn

__all__ = ["AdapterMethods"]


class AdapterMethods(nn.Module):
    """Methods of `PeftModel` that add, choose, merge and remove adapters."""

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Configurations of the adapters, by their names; those of adapters that `peftly.attach` has added, too."""
        configs, adapters = wrapping_of(self).configs, attached(self)
        for name in configs.keys() - adapters.keys():
            del configs[name]
        for name in adapters.keys() - configs.keys():
            configs[name] = config_of(adapters[name])
        return configs

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters."""
        disabled = wrapping_of(self).disabled
        return active_adapters(self) if disabled is None else list(disabled)

    @property
    def active_adapter(self) -> Any:
        """Name of the active adapter; a list if not exactly one is active."""
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    @property
    def active_peft_config(self) -> PeftConfig:
        """Configuration of the active adapter."""
        return self.peft_config[(self.active_adapters or list(self.peft_config))[0]]

    @property
    def peft_type(self) -> Any:
        """Method of the active adapter, as PEFT names it."""
        return self.active_peft_config.peft_type

    @property
    def modules_to_save(self) -> set[str] | None:
        """Names of modules of which adapters train copies; None: there are none."""
        configs: list[Any] = list(self.peft_config.values())
        return {name for one in configs for name in getattr(one, "modules_to_save", None) or ()} or None

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Activate an adapter, or several, and no others; only these are trained.

        Args:
            adapter_name: name of the adapter, or names.
            inference_mode: whether these are not trained either.

        Raises:
            MethodError: there is no such adapter.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        model: Any = self
        set_adapters(model, *names)
        wrapping_of(self).disabled = None
        train_only(self, () if inference_mode else names)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Set whether training changes the parameters of adapters."""
        require_grad(self, [adapter_names] if isinstance(adapter_names, str) else list(adapter_names), requires_grad)

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add a new adapter, of any method, which is neither active nor trained before `set_adapter`.

        Args:
            adapter_name: name of the adapter.
            peft_config: its configuration.
            low_cpu_mem_usage, autocast_adapter_dtype: without effect.

        Raises:
            MethodError: the model has an adapter of this name already, or cannot carry this one.
        """
        with _same_active(self):
            attach_new(self, peft_config, adapter_name)
        require_grad(self, [adapter_name], False)
        self.peft_config[adapter_name] = peft_config

    def load_adapter(
        self, model_id: str | Path, adapter_name: str = "default", is_trainable: bool = False, **kwargs: Any
    ) -> IncompatibleKeys:
        """Add an adapter from disk or from the Hub, which is not active before `set_adapter`.

        Args:
            model_id: folder of the adapter, or its id on the Hub.
            adapter_name: name of the adapter. The tensors of one that the model has are replaced.
            is_trainable: whether training changes it; False: the model is also set to evaluation mode.
            kwargs: `subfolder`, `revision`, `token` and `cache_dir`; `ignore_mismatched_sizes`; others have no effect.

        Raises:
            AdapterError, MethodError: see `peftly.load_adapter`.
        """
        ignore = bool(kwargs.pop("ignore_mismatched_sizes", False))
        if adapter_name not in self.peft_config:
            found = load_new(self, adapter_source(model_id, **kwargs), adapter_name, active=False)
            finish_loading(self, found, is_trainable=is_trainable)
            return IncompatibleKeys([], [])
        result = set_peft_model_state_dict(self, load_peft_weights(model_id, **kwargs), adapter_name, ignore)
        finish_loading(self, {adapter_name: self.peft_config[adapter_name]}, is_trainable=is_trainable)
        return result

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter. If it was the only active one, the first of the others is active then.

        Raises:
            MethodError: there is no such adapter.
        """
        was_active = self.active_adapters == [adapter_name]
        detach(self, adapter_name)
        if was_active and is_wrapped(self):  # the last adapter takes the class of PEFT with it
            first = next(iter(self.peft_config))
            warn(f"Adapter {adapter_name} was active which is now deleted. Setting active adapter to {first}.")
            self.set_adapter(first)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        **others: Any,
    ) -> None:
        """Add the weighted sum of LoRA adapters as a new one, which is not active before `set_adapter`.

        Args:
            adapters: names of the adapters.
            weights: weight of each.
            adapter_name: name of the new adapter.
            combination_type: "cat" and "linear" are the exact sum, whose rank is the sum of the ranks (PEFT's "linear"
                adds the factors instead of the updates); "svd" its best approximation of rank `svd_rank`.
            svd_rank: rank for "svd"; None: the largest rank of the adapters.
            others: not supported, besides their defaults.

        Raises:
            MethodError: a setting is not supported, or the adapters cannot be added.
        """
        if combination_type not in ("cat", "linear", "svd"):
            raise MethodError(f'combination_type={combination_type!r} is not in peftly; use "svd", "cat" or "linear"')
        if unknown := [key for key, value in others.items() if value not in (None, True, "gesvd", "total")]:
            raise MethodError(f"add_weighted_adapter has no {unknown[0]}; leave it out")
        if len(adapters) != len(weights):
            raise MethodError(f"there are {len(weights)} weights for {len(adapters)} adapters; give one for each")
        if adapter_name in self.peft_config:
            return
        model: Any = self
        by_name = dict(zip(adapters, weights, strict=True))
        with _same_active(self):
            if combination_type == "svd":
                combine(model, by_name, name=adapter_name, method="svd", rank=svd_rank)
            else:
                combine(model, by_name, name=adapter_name)
        require_grad(self, [adapter_name], False)
        self.peft_config[adapter_name] = config_of(attached(self)[adapter_name])

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the model compute as its base, modules of which copies are trained included, inside the block."""
        model: Any = self
        with use_adapters(model):
            yield

    def disable_adapter_layers(self) -> None:
        """Let the model compute as its base until `enable_adapter_layers`."""
        model: Any = self
        wrapping = wrapping_of(model)
        if wrapping.disabled is None:
            wrapping.disabled = active_adapters(model)
            set_adapters(model)

    def enable_adapter_layers(self) -> None:
        """Undo `disable_adapter_layers`."""
        model: Any = self
        wrapping = wrapping_of(model)
        if wrapping.disabled is not None:
            set_adapters(model, *wrapping.disabled)
            wrapping.disabled = None

    def disable_adapters(self) -> None:
        """See `disable_adapter_layers`."""
        self.disable_adapter_layers()

    def enable_adapters(self) -> None:
        """See `enable_adapter_layers`."""
        self.enable_adapter_layers()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
    ) -> Any:
        """Merge the active adapters into the weights, remove all adapters, and return the model in its own class.

        Args:
            progressbar: without effect.
            safe_merge: without effect: a merge that changes the outputs of a layer is always refused.
            adapter_names: names of the adapters to merge; None: the active ones.

        Raises:
            MethodError: see `peftly.merge`.
        """
        return merged(self, self.active_adapters if adapter_names is None else adapter_names)

    def merge_adapter(self, *_: Any, **__: Any) -> None:
        """Refuse to merge adapters that stay on the model.

        Raises:
            MethodError: always.
        """
        raise MethodError(
            "merge_adapter is not in peftly, whose adapters stay beside the weights; call "
            "copy.deepcopy(model).merge_and_unload() for a merged model"
        )

    def unmerge_adapter(self) -> None:
        """See `merge_adapter`."""
        self.merge_adapter()

    def unload(self) -> Any:
        """Remove all adapters and return the model, in its own class."""
        return detach(self)


@contextmanager
def _same_active(model: Any) -> Iterator[None]:
    """Restore the choice of the active adapters after the block."""
    names = active_adapters(model)
    try:
        yield
    finally:
        set_adapters(model, *(name for name in names if name in attached(model)))
