"""`save_pretrained` and `push_to_hub` of an adapted transformers model, and the checkpoints of Trainer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, ModelCard
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.hub import convert_file_size_to_int

from peftly.adapters.files import ADAPTER_FILES, CARD, CONFIG
from peftly.adapters.saving import adapter_tensors, save_adapter
from peftly.adapters.state import attached
from peftly.errors import AdapterError, MethodError
from peftly.injection import owner
from peftly.utils import bytes_text, replacing_file, write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["PushAdapters", "SaveAdapters", "UpdateCard", "ignore_missing_base", "take_peft_names", "values_of"]

Save = Callable[["nn.Module", Path], Any]
"""Function that writes the adapters of a model to a folder."""

_PUSH_SETTINGS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
_TRAINER_FOLDER = re.compile(r"checkpoint-\d+")


class SaveAdapters:
    """`save_pretrained` of an adapted model: it writes the adapters, not the base, so that checkpoints are small."""

    def __init__(self, model: nn.Module, save: Save = save_adapter) -> None:
        self.model, self.save = model, save

    def __call__(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = True,
        distributed_checkpoint: bool = False,
        *,
        safe_serialization: bool = True,
        save_function: Callable[..., Any] | None = None,
        **push_settings: Any,
    ) -> None:
        """Write all adapters as `save_adapter` does; the parameters are those of transformers.

        Args:
            save_directory: folder to write.
            is_main_process: False: this process writes nothing.
            state_dict: values of the parameters of the adapters, by their names in the model; None: those of the model.
            push_to_hub: upload the files, to the repository `repo_id` or one with the name of the folder.
            max_shard_size: maximum size of a file.
            variant, save_peft_format, distributed_checkpoint, safe_serialization: only the default is possible.
            token: token of the Hub.
            save_original_format, save_function: without effect, as in transformers.
            push_settings: `repo_id` and the settings of `push_to_hub`.

        Raises:
            AdapterError: a setting asks for files that peftly does not write, or the folder cannot be written.
            MethodError: `state_dict` lacks a parameter.
        """
        if unknown := [name for name in push_settings if name not in _PUSH_SETTINGS]:
            raise AdapterError(f"save_pretrained of an adapted model has no setting {unknown[0]}; leave it out")
        fixed = {
            "variant": (variant, None),
            "save_peft_format": (save_peft_format, True),
            "distributed_checkpoint": (distributed_checkpoint, False),
            "safe_serialization": (safe_serialization, True),
        }
        for name, (value, only) in fixed.items():
            if value != only:
                raise AdapterError(
                    f"save_pretrained cannot write an adapter with {name}={value!r}: adapters have one format, PEFT's "
                    f"in safetensors; leave {name} out"
                )
        _check_size(self.model, max_shard_size)
        if not is_main_process:
            return
        folder = Path(save_directory)
        with values_of(self.model, state_dict):
            if push_to_hub:
                repo_id = push_settings.pop("repo_id", folder.name)
                _push(self.model, folder, repo_id, self.save, token=token, **push_settings)
            else:
                self.save(self.model, folder)
            if _TRAINER_FOLDER.fullmatch(folder.name):
                _write_trainer_state(self.model, folder)


class PushAdapters:
    """`push_to_hub` of an adapted model: it uploads the adapters, not the base."""

    def __init__(self, model: nn.Module, save: Save = save_adapter) -> None:
        self.model, self.save = model, save

    def __call__(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        max_shard_size: int | str | None = "50GB",
        **settings: Any,
    ) -> Any:
        """Upload all adapters to the Hub; the parameters are those of transformers.

        Args:
            repo_id: repository, which is created if it does not exist.
            token: token of the Hub.
            max_shard_size: maximum size of a file.
            settings: `commit_message`, `commit_description`, `private`, `revision`, `create_pr` and `tags`.

        Returns:
            Information on the commit.

        Raises:
            AdapterError: an adapter is larger than `max_shard_size`, or a setting is unknown.
        """
        if unknown := [name for name in settings if name not in _PUSH_SETTINGS]:
            raise AdapterError(f"push_to_hub of an adapted model has no setting {unknown[0]}; leave it out")
        _check_size(self.model, max_shard_size)
        with TemporaryDirectory() as folder:
            return _push(self.model, Path(folder), repo_id, self.save, token=token, **settings)


class UpdateCard:
    """`create_or_update_model_card` of an adapted model, which Trainer calls once it has written a card of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, output_dir: str | Path) -> None:
        """Name the library, the base and the methods in the model card in a folder."""
        card = Path(output_dir) / CARD
        text = ModelCard.load(card)
        text.data.library_name = "peft"
        if self.model.name_or_path:
            text.data.base_model = self.model.name_or_path
        text.save(card)
        _add_tags(card, ["peftly", *(adapter.config.name for adapter in attached(self.model).values())])


def _add_tags(card: Path, tags: Sequence[str]) -> None:
    text = ModelCard.load(card)
    text.data.tags = list(dict.fromkeys([*(text.data.tags or ()), *tags]))
    text.save(card)


def ignore_missing_base(model: PreTrainedModel, incompatible: Any) -> None:
    """Report no missing tensor after `load_state_dict` with all tensors of the adapters and none of the base.

    Trainer's checkpoints hold such a state. This is a hook for `register_load_state_dict_post_hook`.
    """
    missing = set(incompatible.missing_keys)
    if missing == {name for name in model.state_dict() if not owner(name)}:
        incompatible.missing_keys.clear()


def take_peft_names(model: PreTrainedModel, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Rename the tensors of a model into which PEFT has put the adapter, as sentence-transformers opens checkpoints.

    This is a hook for `register_load_state_dict_pre_hook`. Magnitudes of DoRA keep PEFT's name, so that the load fails:
    transformers drops the ones in the file.
    """
    is_of_peft = any(".base_layer." in name for name in state_dict) and not any(map(owner, state_dict))
    if not is_of_peft or len(attached(model)) != 1:
        return
    (adapter,) = attached(model).values()
    own = {parameter.data_ptr(): (name, parameter) for name, parameter in model.named_parameters()}
    values = {re.sub(r"\.(base_layer|original_module)(?=\.)", "", name): value for name, value in state_dict.items()}
    for file_name, tensor in adapter_tensors(adapter).items():
        parent, _, last = file_name.removeprefix(adapter.copies_prefix).rpartition(".")
        ends = (f"default.{last}", f"{last}.default", f"modules_to_save.default.{last}")
        peft_name = next((each for end in ends if (each := f"{prefix}{parent}.{end}") in values), None)
        name, parameter = own.get(tensor.data_ptr(), ("", tensor))
        if name and peft_name and tensor.is_contiguous() and tensor.numel() == parameter.numel():
            values[prefix + name] = values.pop(peft_name).reshape(parameter.shape)
    state_dict.clear()
    state_dict.update(values)


def _write_trainer_state(model: nn.Module, folder: Path) -> None:
    """Write the parameters of the adapters under their names in the model.

    Trainer passes the content of this file to `load_state_dict` when it resumes, and when it loads the best model.
    """
    tensors = {name: value.detach().cpu().clone() for name, value in model.state_dict().items() if owner(name)}
    with replacing_file(folder / SAFE_WEIGHTS_NAME) as scratch:
        write_tensors(scratch, tensors, {"format": "pt"})


@contextmanager
def values_of(model: nn.Module, state_dict: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Give the parameters of the adapters other values while the block runs.

    Raises:
        MethodError: `state_dict` lacks one of them.
    """
    if state_dict is None:
        yield
        return
    parameters = {name: parameter for name, parameter in model.named_parameters() if owner(name)}
    if missing := next((name for name in parameters if name not in state_dict), None):
        raise MethodError(f"state_dict lacks {missing}, a parameter of an adapter; pass model.state_dict()")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        try:
            for name, parameter in parameters.items():
                parameter.copy_(state_dict[name])
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def _check_size(model: nn.Module, max_shard_size: int | str | None) -> None:
    """Do nothing if the file of every adapter is small enough: an adapter is one file.

    Raises:
        AdapterError: an adapter is larger.
    """
    if max_shard_size is None:
        return
    limit = convert_file_size_to_int(max_shard_size)
    for name in attached(model):
        size = 4 * sum(value.numel() for path, value in model.named_parameters() if owner(path) == name)
        if size > limit:
            raise AdapterError(
                f"the adapter {name!r} is one file of {bytes_text(size)}, and max_shard_size={max_shard_size!r} allows "
                "less; leave max_shard_size out"
            )


def _push(
    model: nn.Module,
    folder: Path,
    repo_id: str,
    save: Save,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tags: Sequence[str] | None = None,
    token: str | bool | None = None,
    **settings: Any,
) -> Any:
    """Save the adapters to a folder and upload their files, without the card where the repository has one.

    Args:
        model: the model.
        folder: folder that is written.
        repo_id, private, revision, tags, token: as for `PushAdapters`.
        settings: further settings of the commit.

    Returns:
        Information on the commit.
    """
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    has_card = api.file_exists(repo_id, CARD, revision=revision, token=token)
    save(model, folder)
    parts = ("", *(f"{name}/" for name in attached(model)))
    inner = [part for part in parts if (folder / part / CONFIG).is_file()]
    tags = [*(getattr(model, "model_tags", None) or ()), *([tags] if isinstance(tags, str) else tags or ())]
    for path in inner if tags else ():
        _add_tags(folder / path / CARD, tags)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=[f"{path}{file}" for path in inner for file in ADAPTER_FILES],
        ignore_patterns=[CARD] if has_card else None,
        revision=revision,
        token=token,
        **{"commit_message": settings.pop("commit_message", None) or "Upload adapter", **settings},
    )
