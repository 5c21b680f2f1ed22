"""Base class of PEFT's configurations: a mutable dataclass that is read from and written to `adapter_config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import hf_hub_download
from torch import nn

from peftly.adapters import CONFIG, PEFT_VERSION
from peftly.errors import ConfigError
from peftly.peft.names import PeftType, TaskType
from peftly.utils import warn

__all__ = ["PEFT_TYPE_TO_CONFIG_MAPPING", "PeftConfig", "PromptLearningConfig", "get_peft_config"]

PEFT_TYPE_TO_CONFIG_MAPPING: dict[str, type[PeftConfig]] = {}
"""Class of the configuration of each method, by the name of the method in PEFT."""


@dataclass
class PeftConfig:
    """Configuration of an adapter. The classes of the methods, such as `LoraConfig`, derive from it.

    Attributes:
        task_type: task of the model; None: none that PEFT knows.
        peft_type: name of the method in PEFT.
        auto_mapping: class of the base of an adapter without a task.
        peft_version: version of PEFT whose format the configuration has.
        base_model_name_or_path: name of the base.
        revision: commit, branch or tag of the base.
        inference_mode: whether the adapter is for inference, so that its parameters are not trained.
    """

    task_type: TaskType | str | None = None
    peft_type: PeftType | str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    method_type: ClassVar[PeftType | None] = None
    """Value of `peft_type` for this class; None: any."""

    def __init_subclass__(cls) -> None:
        if cls.method_type is not None:
            PEFT_TYPE_TO_CONFIG_MAPPING[cls.method_type] = cls

    def __post_init__(self) -> None:
        """Check the arguments.

        Raises:
            ConfigError: an argument has an impossible value; the error is a ValueError.
        """
        if self.task_type is not None and self.task_type not in list(TaskType):
            known = ", ".join(TaskType)
            raise ConfigError(
                f"Invalid task type: '{self.task_type}'. Must be one of the following task types: {known}."
            )
        self.peft_version = self.peft_version or PEFT_VERSION
        self.peft_type = self.method_type or self.peft_type

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the method adds virtual tokens or a prefix."""
        return False

    @property
    def is_adaption_prompt(self) -> bool:
        """Whether the method is LLaMA-Adapter, which peftly does not have."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments by name."""
        return dataclasses.asdict(self)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `adapter_config.json`: sets are sorted lists there."""
        return {
            key: sorted(value, key=str) if isinstance(value, set | frozenset) else value
            for key, value in self.to_dict().items()
        }

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write `adapter_config.json` to a folder, which is created if it is missing.

        Args:
            save_directory: the folder.
            kwargs: `auto_mapping_dict`, the class of the base of an adapter without a task.

        Raises:
            AssertionError: the path is a file.
            ConfigError: another argument was given.
        """
        folder, mapping = Path(save_directory), kwargs.pop("auto_mapping_dict", None)
        if kwargs:
            raise ConfigError(f"save_pretrained of a configuration takes no {', '.join(kwargs)}; peftly push uploads")
        if folder.is_file():
            raise AssertionError(f"Provided path ({save_directory}) should be a directory, not a file")
        folder.mkdir(parents=True, exist_ok=True)
        content = self.to_json() if mapping is None else {**self.to_json(), "auto_mapping": mapping}
        (folder / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False), "utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> PeftConfig:
        """Return the configuration of an adapter in a folder or on the Hub, in the class of its method.

        Args:
            pretrained_model_name_or_path: folder of the adapter, or its id on the Hub.
            subfolder: folder below it.
            kwargs: arguments of `huggingface_hub.hf_hub_download`, such as `revision` and `token`; others are not used.

        Raises:
            ConfigError: there is no `adapter_config.json`, or peftly does not have its method.
        """
        path = Path(pretrained_model_name_or_path, subfolder or "") / CONFIG
        if not path.is_file():
            known = {key: value for key, value in kwargs.items() if key in signature(hf_hub_download).parameters}
            try:
                path = Path(hf_hub_download(str(pretrained_model_name_or_path), CONFIG, subfolder=subfolder, **known))
            except Exception as error:  # also those of the client's HTTP library, whichever it is
                raise ConfigError(f"Can't find '{CONFIG}' at '{pretrained_model_name_or_path}'") from error
        return cls.from_peft_type(**cls.from_json_file(path))

    @classmethod
    def from_json_file(cls, path_json_file: str | Path, **_: Any) -> dict[str, Any]:
        """Return the content of a JSON file, without `runtime_config`, which holds only while a program runs."""
        content: dict[str, Any] = json.loads(Path(path_json_file).read_text("utf-8"))
        if content.pop("runtime_config", None) is not None:
            warn(f"{path_json_file} has a `runtime_config` key. This is ignored", stacklevel=2)
        return content

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """Return a configuration of the class that `peft_type` names, or of this class without it.

        Warns about arguments that the class does not know, as a file of a later version of PEFT has them.

        Raises:
            ConfigError: peftly does not have the method.
        """
        kind = config_class(kwargs["peft_type"]) if "peft_type" in kwargs else cls
        known = {field.name for field in dataclasses.fields(kind)}
        unknown = sorted(kwargs.keys() - known)
        if unknown and "peft_type" not in kwargs:
            raise TypeError(
                f"The {cls.__name__} config that is trying to be loaded is missing required keys: {{'peft_type'}}."
            )
        if unknown:
            warn(f"Unexpected keyword arguments {unknown} for class {kind.__name__}, these are ignored.", stacklevel=3)
        return kind(**{key: value for key, value in kwargs.items() if key in known})

    def entries_on(self, model: nn.Module) -> dict[str, Any]:
        """Return entries of `adapter_config.json` for a new adapter on a model, where they differ from the arguments.

        Layers that the arguments leave open are those of PEFT for the type of the model.

        Raises:
            ConfigError: PEFT has no default layers for this model.
        """
        return {}

    def fresh_settings(self) -> dict[str, Any]:
        """Return the settings of the method that only a new adapter has, such as its initial values.

        Raises:
            ConfigError: peftly does not have the initialisation.
        """
        return {}


@dataclass
class PromptLearningConfig(PeftConfig):
    """Configuration of a method with virtual tokens or a prefix.

    Attributes:
        num_virtual_tokens: number of virtual tokens.
        token_dim: width of an embedding; None: that of the base.
        num_transformer_submodules: number of stacks of the base with a prompt: 2 in an encoder-decoder.
        num_attention_heads: number of attention heads of the base.
        num_layers: number of layers of the base.
        modules_to_save: names of modules of which trained copies are saved.
    """

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the method adds virtual tokens or a prefix."""
        return True


def config_class(peft_type: object) -> type[PeftConfig]:
    """Return the class of the configurations of a method.

    Raises:
        ConfigError: peftly does not have the method.
    """
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(peft_type))
    if known is None:
        raise ConfigError(
            f"peft_type {peft_type!r} has no configuration in peftly.peft, which has "
            f"{', '.join(PEFT_TYPE_TO_CONFIG_MAPPING)}; peftly.load opens the adapters of peftly's own methods"
        )
    return known


def get_peft_config(config_dict: Mapping[str, Any]) -> PeftConfig:
    """Return the configuration that a dictionary describes, in the class that its `peft_type` names.

    Raises:
        KeyError: there is no `peft_type`.
        ConfigError: peftly does not have the method, or an argument has an impossible value.
    """
    return config_class(config_dict["peft_type"])(**config_dict)
