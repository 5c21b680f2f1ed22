"""The tasks: for each the model's class, the loss, the scores, and which bases and rows it is for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from peftly.classification import evaluate_classes, evaluate_tags, labels_of
from peftly.data import Shape, Split, TaskName
from peftly.errors import ConfigError, DataError
from peftly.label_scoring import evaluate_answers, evaluate_labels
from peftly.objective import Logits, class_logits, decoder_logits, labelled_logits, tag_logits
from peftly.scores import Evaluation, evaluate_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TASKS", "Task", "choose_task", "task_for", "task_of", "task_of_class", "task_of_peft"]

Evaluate = Callable[["PreTrainedModel", "PreTrainedTokenizerBase", Split, Shape, int], Evaluation]


@dataclass(frozen=True)
class Task:
    """What is particular to one task.

    Attributes:
        auto_class: the class of transformers that opens a base for it.
        peft_type: PEFT's name for it.
        logits: what the loss is made of; see `target_losses`.
        evaluate: model, tokenizer, split, shape and batch size to scores.
        learns: the attribute of `Encoded` with what is learned; "trained" for the text itself.
        is_classification: whether the model has a head for a list of labels.
    """

    auto_class: str
    peft_type: str
    logits: Logits
    evaluate: Evaluate
    learns: str
    is_classification: bool = False


def _evaluate_causal(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, shape: Shape, batch_size: int
) -> Evaluation:
    if shape.kind == "label":
        return evaluate_labels(model, tokenizer, split, shape, batch_size)
    return evaluate_tokens(model, tokenizer, split, batch_size, labelled_logits)


def _evaluate_seq2seq(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, shape: Shape, batch_size: int
) -> Evaluation:
    if shape.kind == "label":
        return evaluate_answers(model, tokenizer, split, shape, batch_size)
    return evaluate_tokens(model, tokenizer, split, batch_size, decoder_logits)


TASKS: dict[TaskName, Task] = {
    "causal_lm": Task("AutoModelForCausalLM", "CAUSAL_LM", labelled_logits, _evaluate_causal, "trained"),
    "seq2seq_lm": Task("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", decoder_logits, _evaluate_seq2seq, "answer"),
    "sequence_classification": Task(
        "AutoModelForSequenceClassification", "SEQ_CLS", class_logits, evaluate_classes, "label", is_classification=True
    ),
    "token_classification": Task(
        "AutoModelForTokenClassification", "TOKEN_CLS", tag_logits, evaluate_tags, "tags", is_classification=True
    ),
}

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
    from transformers import PreTrainedModel

    if kind.__name__.endswith("ForSequenceClassification"):
        return "sequence_classification"
    if kind.__name__.endswith("ForTokenClassification"):
        return "token_classification"
    if not issubclass(kind, PreTrainedModel) or not kind.can_generate():
        return None
    return "seq2seq_lm" if config.is_encoder_decoder else "causal_lm"


def task_for(model: Any, split: Split, shape: Shape) -> Task:
    """Return the task of a model, after a look at whether the rows are encoded for it.

    Raises:
        DataError: they are encoded for another, have other labels than the model's head, or are too long for it.
    """
    name = task_of(model) or "causal_lm"
    own = next(task for task in reversed(TASKS) if getattr(split.encoded[0], TASKS[task].learns) is not None)
    if own != name:
        raise DataError(
            f"the model is for {name} and the rows were encoded for {own}; load the data with task={name!r}"
        )
    if TASKS[name].is_classification and len(labels_of(model)) != len(shape.labels):
        raise DataError(
            f"the model tells {len(labels_of(model))} labels apart and the rows have {len(shape.labels)}; "
            "open its base with the labels of the rows"
        )
    longest, most = max(len(row.input_ids) for row in split.encoded), _most_tokens(model)
    if most is not None and longest > most:
        raise DataError(f"a row has {longest} tokens and the model reads {most} at most; set data.max_length to {most}")
    return TASKS[name]


def _most_tokens(model: Any) -> int | None:
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
    from transformers.models.auto import modeling_auto

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
