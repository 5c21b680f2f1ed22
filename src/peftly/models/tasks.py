"""The tasks: the class of transformers that each needs, and which bases and data it fits."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from peftly.data import TaskName
from peftly.errors import ConfigError

__all__ = ["TASKS", "Task", "choose_task", "labels_of", "max_input_tokens", "task_of", "task_of_class", "task_of_peft"]


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


def labels_of(model: Any) -> list[str]:
    """Return the names of what a classifier tells apart, by number."""
    names = model.config.id2label
    return [str(names[number]) for number in sorted(names)]


_FAMILIES: dict[str, tuple[TaskName, ...]] = {
    "encoder": ("sequence_classification", "token_classification"),
    "encoder-decoder": ("seq2seq_lm",),
    "decoder": ("causal_lm", "sequence_classification", "token_classification"),
}
"""The tasks of each family of models; the first of a decoder and an encoder-decoder is what it does unasked."""


_ROWS: dict[str, tuple[TaskName, ...]] = {
    "texts": ("causal_lm", "seq2seq_lm"),
    "labels": ("causal_lm", "seq2seq_lm", "sequence_classification"),
    "tags": ("token_classification",),
}
"""The tasks of each kind of rows."""


_NEEDS: dict[TaskName, str] = {
    "causal_lm": "texts or labels",
    "seq2seq_lm": "prompts with completions or labels",
    "sequence_classification": "labels (text + label)",
    "token_classification": "tags (tokens + tags)",
}


def task_of(model: Any) -> TaskName | None:
    """Return the task that a model's head is for, None where it has no head of these."""
    return task_of_class(type(model), getattr(model, "config", None))


def task_of_class(kind: Any, config: Any) -> TaskName | None:
    """Return the task that a class of transformers is for, None if it is none of these."""
    ancestors = {ancestor.__name__ for ancestor in kind.__mro__}
    for task, classes in _CLASSIFIERS.items():
        if ancestors & classes:
            return task
    if not issubclass(kind, PreTrainedModel) or not kind.can_generate():
        return None
    return "seq2seq_lm" if config.is_encoder_decoder else "causal_lm"


def max_input_tokens(model: Any) -> int | None:
    """Return how many tokens an encoder has positions for; None for other models and other kinds of positions."""
    for path, module in model.named_modules():
        if path.endswith("embeddings.position_embeddings") and hasattr(module, "num_embeddings"):
            first = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts on from the padding
            return int(module.num_embeddings) - first
    return None


def task_of_peft(peft_type: str | None) -> TaskName | None:
    """Return the task that PEFT calls by this name, None if it is none of these."""
    return next((name for name, task in TASKS.items() if task.peft_type == peft_type), None)


def choose_task(
    asked: TaskName | None, config: Any, rows: Literal["tags", "labels", "texts"], spec: str
) -> tuple[TaskName, str]:
    """Return the task for a base and rows, and why it is this one.

    Args:
        asked: the person's choice; None: what fits.
        config: of the base, as transformers has it; None: of a GGUF file, which holds a decoder.
        rows: what there is to learn in the rows.
        spec: the base's name, for messages.

    Raises:
        ConfigError: the base or the rows cannot serve the task, or no task fits both.
    """
    family = _family(config)
    kind = f"{spec} is {'an' if family[0] == 'e' else 'a'} {family}" + (f" ({config.model_type})" if config else "")
    able = [task for task in _FAMILIES[family] if config is None or _has_class(task, config)]
    fitting = [task for task in able if task in _ROWS[rows]]
    if asked is not None:
        if asked not in able:
            raise ConfigError(f"task {asked} is not for this base: {kind}, which learns {_listed(able)}")
        if asked not in _ROWS[rows]:
            others = _listed(fitting or _ROWS[rows])
            raise ConfigError(f"task {asked} needs rows with {_NEEDS[asked]}; these hold {rows}, for {others}")
        return asked, "as asked"
    usual = able if family == "encoder" else able[:1]
    chosen = next((task for task in usual if task in fitting), None)
    if chosen is None:
        hint = f"give --task {fitting[0]}" if fitting else " or ".join(f"{_NEEDS[task]} for {task}" for task in able)
        raise ConfigError(f"{kind}, and the rows hold {rows}; " + (hint if fitting else f"it needs {hint}"))
    return chosen, f"{kind}" + (f", and the rows have {rows}" if family == "encoder" else "")


def _family(config: Any) -> str:
    if config is None:
        return "decoder"
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    writes = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    is_encoder = (masked or not writes) and not getattr(config, "is_decoder", False)
    return "encoder" if is_encoder else "decoder"


def _has_class(task: TaskName, config: Any) -> bool:
    import transformers

    return type(config) in getattr(transformers, TASKS[task].auto_class)._model_mapping


def _listed(tasks: Any) -> str:
    return " or ".join(tasks) or "nothing here"
