"""Adapters opened together with the base that they name: `AutoPeftModel` and its classes by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import transformers
from transformers import AutoConfig, AutoTokenizer

from peftly.adapters import LABELS, open_adapters, tokenizer_size
from peftly.errors import AdapterError
from peftly.peft.config import PeftConfig
from peftly.peft.model import PeftModel
from peftly.peft.names import TaskType
from peftly.peft.state_dict import adapter_source

__all__ = [
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
]

_AUTO_CLASSES = {
    TaskType.CAUSAL_LM: "AutoModelForCausalLM",
    TaskType.SEQ_2_SEQ_LM: "AutoModelForSeq2SeqLM",
    TaskType.SEQ_CLS: "AutoModelForSequenceClassification",
    TaskType.TOKEN_CLS: "AutoModelForTokenClassification",
    TaskType.QUESTION_ANS: "AutoModelForQuestionAnswering",
    TaskType.FEATURE_EXTRACTION: "AutoModel",
}
"""Class of transformers that opens the base of an adapter, by its task."""


class AutoPeftModel:
    """Opens an adapter with its base, which its file names by class or by task."""

    task: ClassVar[TaskType | None] = None
    """Task of the adapters that the class opens; None: any."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Refuse.

        Raises:
            OSError: always.
        """
        name = type(self).__name__
        raise OSError(f"{name} is designed to be instantiated using the `{name}.from_pretrained(...)` method")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        import_allowlist: list[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open an adapter and its base, and return the model.

        Args:
            pretrained_model_name_or_path: folder of the adapter, or its id on the Hub.
            adapter_name, is_trainable, config: as for `PeftModel.from_pretrained`.
            revision: commit, branch or tag of the adapter.
            import_allowlist: without effect: only classes of transformers are opened.
            kwargs: arguments of the base's `from_pretrained`, and `subfolder` of the adapter.

        Raises:
            AdapterError: there is no adapter, or it is for another task.
        """
        hub = {key: kwargs.get(key) for key in ("token", "cache_dir")}
        source = adapter_source(
            pretrained_model_name_or_path, subfolder=kwargs.pop("subfolder", None), revision=revision, **hub
        )
        adapters = open_adapters(source)
        peft, base = next(iter(adapters.folders.values())).peft_config, adapters.requirements.base
        labels = adapters.notes.get(LABELS)
        if labels and not {"num_labels", "id2label"} & kwargs.keys():
            kwargs |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        model_class = cls._class_of_base(peft, source, base)
        model = model_class.from_pretrained(base, revision=peft.get("revision"), **kwargs)
        if (adapters.path / "tokenizer_config.json").is_file():
            tokens = tokenizer_size(AutoTokenizer.from_pretrained(adapters.path))
            if tokens > model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(tokens)
        return PeftModel.from_pretrained(model, adapters.path, adapter_name, is_trainable, config)

    @classmethod
    def _class_of_base(cls, peft: Any, source: object, base: str) -> Any:
        """Return the class of transformers that opens the base: that of the task, or the one in the base's config.

        The class of a task opens no Whisper, for example, whose files may name the task SEQ_2_SEQ_LM.

        Raises:
            AdapterError: the adapter is for another task, or the file names no class.
        """
        task = peft.get("task_type")
        if cls.task is not None and task not in (None, cls.task):
            raise AdapterError(
                f"{source} is for the task {task}, and {cls.__name__} opens {cls.task}; use AutoPeftModel"
            )
        mapping = peft.get("auto_mapping") or {}
        name = _AUTO_CLASSES.get(cls.task or task) or mapping.get("base_model_class")
        found: Any = getattr(transformers, str(name), None)
        config = AutoConfig.from_pretrained(base, revision=peft.get("revision"))
        if getattr(found, "_model_mapping", None) is not None and type(config) not in found._model_mapping:
            found = next((getattr(transformers, name, None) for name in config.architectures or ()), None)
        if found is None:
            raise AdapterError(f"{source} names no class of its base; open the base, and use PeftModel.from_pretrained")
        return found


class AutoPeftModelForCausalLM(AutoPeftModel):
    """Opens an adapter for a decoder that generates text, with its base."""

    task = TaskType.CAUSAL_LM


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """Opens an adapter for an encoder-decoder that generates text, with its base."""

    task = TaskType.SEQ_2_SEQ_LM


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """Opens an adapter for a classifier of texts, with its base."""

    task = TaskType.SEQ_CLS


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """Opens an adapter for a classifier of tokens, with its base."""

    task = TaskType.TOKEN_CLS


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """Opens an adapter for a model that finds answers in a text, with its base."""

    task = TaskType.QUESTION_ANS


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """Opens an adapter for a body without a head, with its base."""

    task = TaskType.FEATURE_EXTRACTION
