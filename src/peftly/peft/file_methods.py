"""PEFT's methods of a model about numbers, files and prompts of its adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peftly.adapters import PushAdapters, SaveAdapters, attached, save_adapter
from peftly.errors import AdapterError, MethodError
from peftly.peft.state_dict import adapter_of
from peftly.peft.status import ModelStatus, TunerLayerStatus, get_layer_status, get_model_status
from peftly.peft.trainable import number_of_parameters

__all__ = ["FileMethods"]


class FileMethods(nn.Module):
    """Methods of `PeftModel` about numbers, files and prompts."""

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the number of trainable parameters, and of all."""
        return number_of_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print the number of trainable parameters, of all, and their ratio."""
        trainable, total = number_of_parameters(self)
        print(  # noqa: T201 -- the purpose of the method
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
        )

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """Return the state of each layer that an adapter changes."""
        return get_layer_status(self)

    def get_model_status(self) -> ModelStatus:
        """Return the state of the adapters."""
        return get_model_status(self)

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the adapters: `default` to the folder, and each other one to a folder of its name in it.

        Args:
            save_directory: folder to write.
            safe_serialization: only True is possible.
            selected_adapters: names of the adapters; None: all.
            save_embedding_layers: whether the files also hold the embedding and the output head of the base; "auto": if
                the vocabulary was resized.
            is_main_process: False: this process writes nothing.
            path_initial_model_for_weight_conversion: without effect: the base of an adapter never changes, so a
                file always fits the original base.
            kwargs: `state_dict` and the settings of `push_to_hub`.

        Raises:
            AdapterError, MethodError: see `peftly.save_adapter`.
        """
        if Path(save_directory).is_file():
            raise AdapterError(f"Provided path ({save_directory}) should be a directory, not a file")
        save = _Save(selected_adapters, save_embedding_layers)
        writer = SaveAdapters(self, save)
        writer(save_directory, is_main_process, safe_serialization=safe_serialization, **kwargs)

    def push_to_hub(self, repo_id: str, safe_serialization: bool = True, **kwargs: Any) -> Any:
        """Upload the adapters; the arguments are those of transformers.

        Raises:
            AdapterError: a setting is unknown.
        """
        if not safe_serialization:
            raise AdapterError("push_to_hub writes safetensors only; leave safe_serialization out")
        return PushAdapters(self, _Save(None, "auto"))(repo_id, **kwargs)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> Tensor:
        """Return the prompt of an adapter as its file holds it."""
        return _prompt_of(self, adapter_name).detach().cpu()

    def get_prompt(self, batch_size: int, task_ids: Tensor | None = None, max_cache_len: int | None = None) -> Tensor:
        """Return the virtual tokens of the active adapter for a batch, (batch_size, num_virtual_tokens, width)."""
        return _prompt_of(self, str(self.active_adapter)).repeat(batch_size, 1, 1)


class _Save:
    """Function that writes adapters in the layout of PEFT."""

    def __init__(self, names: Sequence[str] | None, embeddings: str | bool) -> None:
        self.names, self.embeddings = names, None if embeddings == "auto" else bool(embeddings)

    def __call__(self, model: nn.Module, folder: Path) -> None:
        for name in attached(model) if self.names is None else self.names:
            target = folder if name == "default" else folder / name
            save_adapter(model, target, name=name, embeddings=self.embeddings)


def _prompt_of(model: Any, name: str) -> Tensor:
    """Return the prompt of an adapter as its file holds it.

    Raises:
        MethodError: there is no such adapter, or it has no prompt.
    """
    adapter = adapter_of(model, name)
    prompt: Tensor | None = adapter.file_tensors().get("prompt_embeddings")
    if prompt is None:
        raise MethodError(
            f"{name!r} is {adapter.config.name}, which has no prompt; see get_peft_model_state_dict(model)"
        )
    return prompt
