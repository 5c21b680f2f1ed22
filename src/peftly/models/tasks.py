"""Tasks: class of transformers that opens a base for a task, and choice of the task for a base and data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from peftly.data import TargetKind, TaskName
from peftly.errors import ConfigError
from peftly.injection import family_of, is_body
from peftly.models.pooled import POOLINGS, Pooling, pooling_of

__all__ = [
    "TASKS",
    "OutputKind",
    "Task",
    "auto_mapping",
    "choose_task",
    "class_of_peft",
    "is_encoder",
    "labels_of",
    "output_kind",
    "peft_task_type",
    "pooling_of_peft",
    "task_of",
    "task_of_class",
    "task_of_peft",
]


@dataclass(frozen=True)
class Task:
    """Requirements of one task on a base model.

    Attributes:
        auto_class: class of transformers that opens a base for the task.
        peft_type: name of the task in PEFT's files.
        is_classification: whether the model has a head for a list of labels.
    """

    auto_class: str
    peft_type: str
    is_classification: bool = False


TASKS: dict[TaskName, Task] = {
    "causal_lm": Task("AutoModelForCausalLM", "CAUSAL_LM"),
    "seq2seq_lm": Task("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "sequence_classification": Task("AutoModelForSequenceClassification", "SEQ_CLS", is_classification=True),
    "token_classification": Task("AutoModelForTokenClassification", "TOKEN_CLS", is_classification=True),
}

_CLASSIFIERS: dict[TaskName, frozenset[str]] = {
    "sequence_classification": frozenset(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()),
    "token_classification": frozenset(modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()),
}
"""Classes of transformers with a head for each task of classification, by their names."""


OutputKind = Literal["class", "labels", "numbers"]
"""Meaning of the outputs of a sequence classifier: one of the labels is right, any number of them are, or each output
is a number, such as the score of a reward model."""


def output_kind(config: Any) -> OutputKind:
    """Return the meaning of the outputs of a sequence classifier with this config, as its class reads the config."""
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        return "labels"
    return "numbers" if problem == "regression" or (problem is None and config.num_labels == 1) else "class"


def labels_of(model: Any) -> list[str]:
    """Return the labels of a classifier, in the order of its outputs."""
    names = model.config.id2label
    return [str(names[number]) for number in sorted(names)]


_FAMILIES: dict[str, tuple[TaskName, ...]] = {
    "encoder": ("sequence_classification", "token_classification"),
    "encoder-decoder": ("seq2seq_lm",),
    "decoder": ("causal_lm", "sequence_classification", "token_classification"),
}
"""Tasks of each family of models; the first task is the default of decoders and encoder-decoders."""


_TASKS_OF_TARGETS: dict[TargetKind, tuple[TaskName, ...]] = {
    "texts": ("causal_lm", "seq2seq_lm"),
    "labels": ("causal_lm", "seq2seq_lm", "sequence_classification"),
    "tags": ("token_classification",),
}
"""Tasks that can learn each kind of targets."""


_NEEDS: dict[TaskName, str] = {
    "causal_lm": "texts or labels",
    "seq2seq_lm": "prompts with completions or labels",
    "sequence_classification": "labels (text + label) or a --target with labels",
    "token_classification": "tags (tokens + tags)",
}
"""Targets that each task learns, for messages."""


def task_of(model: Any) -> TaskName | None:
    """Return the task of a model's head; None where the head is for no task of `TASKS`."""
    return task_of_class(type(model), getattr(model, "config", None))


def task_of_class(model_class: Any, config: Any) -> TaskName | None:
    """Return the task of a class of transformers; None if it is for no task of `TASKS`."""
    ancestors = {ancestor.__name__ for ancestor in model_class.__mro__}
    for task, classes in _CLASSIFIERS.items():
        if ancestors & classes:
            return task
    if not issubclass(model_class, PreTrainedModel) or not model_class.can_generate():
        return None
    return "seq2seq_lm" if config.is_encoder_decoder else "causal_lm"


_POOLED_PEFT_TYPE = re.compile(f"PEFTLY_({'|'.join(POOLINGS).upper()})_(.*)")
"""Name of a task in adapter files where the head pools the token states, which PEFT refuses as unknown."""


def peft_task_type(model: Any) -> str | None:
    """Return the name of the task of a model for adapter files; None where PEFT has no name for it."""
    task, pooling = task_of(model), pooling_of(model)
    if task is None:
        names = {ancestor.__name__ for ancestor in type(model).__mro__}
        return _BODY if is_body(model) else _ANSWERS if names & _ANSWER_CLASSES else None
    return TASKS[task].peft_type if pooling is None else f"PEFTLY_{pooling.upper()}_{TASKS[task].peft_type}"


_BODY, _ANSWERS = "FEATURE_EXTRACTION", "QUESTION_ANS"
_ANSWER_CLASSES = frozenset(modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values())
_AUTO_CLASSES = {_BODY: "AutoModel", _ANSWERS: "AutoModelForQuestionAnswering"}
"""Auto classes of the tasks in PEFT's files that are none of `TASKS`."""


def auto_mapping(model: Any) -> dict[str, str] | None:
    """Return the class of a model for adapter files that name no task, as PEFT has it; None: transformers has none."""
    if not isinstance(model, PreTrainedModel):
        return None
    return {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}


def class_of_peft(peft: Mapping[str, Any]) -> str | None:
    """Return the name of the class of transformers that opens the base of an adapter without a task of `TASKS`.

    Args:
        peft: content of `adapter_config.json`.

    Returns:
        None for a task of `TASKS`, and where the file names no class that transformers has.
    """
    import transformers

    task_type, mapping = peft.get("task_type"), peft.get("auto_mapping")
    if task_of_peft(task_type) is not None:
        return None
    name = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    known = isinstance(name, str) and isinstance(getattr(transformers, name, None), type)
    return _AUTO_CLASSES.get(task_type or "") or (name if known else None)


def task_of_peft(peft_type: str | None) -> TaskName | None:
    """Return the task with this name in adapter files; None if it is no task of `TASKS`."""
    match = _POOLED_PEFT_TYPE.fullmatch(peft_type or "")
    name = match[2] if match else peft_type
    return next((task for task, values in TASKS.items() if values.peft_type == name), None)


def pooling_of_peft(peft_type: str | None) -> Pooling | None:
    """Return the pooling of the head that the name of a task in adapter files tells; None: there is none."""
    match = _POOLED_PEFT_TYPE.fullmatch(peft_type or "")
    return next((pooling for pooling in POOLINGS if match and pooling.upper() == match[1]), None)


def choose_task(asked: TaskName | None, config: Any, targets: TargetKind, name: str) -> tuple[TaskName, str]:
    """Return the task for a base and data, and the reason for this task.

    Args:
        asked: choice of the user; None: the task that fits.
        config: config of the base; None for a GGUF file, which holds a decoder.
        targets: kind of the targets in the data.
        name: name of the base, for messages.

    Raises:
        ConfigError: the base or the data do not fit the task, or no task fits both.
    """
    family = "decoder" if config is None else family_of(config)
    model_type = f" ({config.model_type})" if config else ""
    description = f"{name} is {'an' if family[0] == 'e' else 'a'} {family}{model_type}"
    able = [task for task in _FAMILIES[family] if config is None or _has_class(task, config)]
    fitting = [task for task in able if task in _TASKS_OF_TARGETS[targets]]
    if asked is not None:
        if asked not in able:
            raise ConfigError(f"task {asked} is not for this base: {description}, which learns {_listed(able)}")
        if asked not in _TASKS_OF_TARGETS[targets]:
            others = _listed(fitting or _TASKS_OF_TARGETS[targets])
            raise ConfigError(f"task {asked} needs rows with {_NEEDS[asked]}; these hold {targets}, for {others}")
        return asked, "as asked"
    defaults = able if family == "encoder" else able[:1]
    chosen = next((task for task in defaults if task in fitting), None)
    if chosen is None:
        hint = f"give --task {fitting[0]}" if fitting else " or ".join(f"{_NEEDS[task]} for {task}" for task in able)
        raise ConfigError(f"{description}, and the rows hold {targets}; " + (hint if fitting else f"it needs {hint}"))
    return chosen, description + (f", and the rows have {targets}" if family == "encoder" else "")


def is_encoder(config: Any) -> bool:
    """Return whether a config is that of a base that reads a text in both directions, without a decoder."""
    return config is not None and family_of(config) == "encoder"


def _has_class(task: TaskName, config: Any) -> bool:
    import transformers

    return type(config) in getattr(transformers, TASKS[task].auto_class)._model_mapping


def _listed(tasks: Any) -> str:
    return " or ".join(tasks) or "nothing here"
