"""Names of tasks, methods and initialisations, as PEFT spells them. Each is a text, too."""

import enum

__all__ = ["PeftType", "PromptEncoderReparameterizationType", "PromptTuningInit", "TaskType"]


class TaskType(enum.StrEnum):
    """Task of a model."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"  # noqa: S105 - a task
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftType(enum.StrEnum):
    """Method of an adapter: the methods of PEFT that peftly has."""

    PROMPT_TUNING = "PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    LORA = "LORA"
    IA3 = "IA3"


class PromptTuningInit(enum.StrEnum):
    """Initial embeddings of prompt tuning: those of tokens of the vocabulary, of the tokens of a text, or random."""

    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    TEXT = "TEXT"
    RANDOM = "RANDOM"


class PromptEncoderReparameterizationType(enum.StrEnum):
    """Network of P-tuning."""

    MLP = "MLP"
    LSTM = "LSTM"
