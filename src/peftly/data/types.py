"""An example of a data set, as text (`Example`) and as token ids (`EncodedExample`)."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = ["UNTRAINED", "EncodedExample", "Example", "TaskName"]

UNTRAINED = -100
"""Label that the losses of torch and transformers ignore."""

TaskName = Literal["causal_lm", "seq2seq_lm", "sequence_classification", "token_classification"]
"""A task: continue a text, answer a text, give a text one label, or give each word of a text a tag."""


@dataclass(frozen=True)
class EncodedExample:
    """An example as token ids, with its training target.

    The target of a causal language model is part of `input_ids`, where `trained` is true. The target of another task is
    the one of `label`, `tags` and `answer` that is not None.

    Attributes:
        input_ids: token ids that the model reads. For a causal language model: prompt, completion and end token.
        trained: whether the loss counts each token; as long as `input_ids`. The first token of a causal language model
            is never trained, since no token comes before it.
        num_truncated: number of tokens that were removed to fit the maximum length.
        label: class index of the text.
        tags: tag index of each token, `UNTRAINED` for a token without a tag; as long as `input_ids`.
        answer: token ids that the decoder of an encoder-decoder learns to generate.
        token_type_ids: index (0 or 1) of the text that each token belongs to, for models that read text pairs.
        prompt_positions: for each virtual token that the template marks, index of the token that follows the virtual
            token; see `use_prompt_positions`.
        findings: defects of the example that the encoding met: pairs of a key of `FINDING_KINDS` and a detail, such as
            the unknown characters. `EncodedExamples` does not store them.
        others: further sequences of the same conversation, with turns that its chat template rewrites when others
            follow. `EncodedExamples` does not store them, and `encode_split` puts them behind this one.
        num_messages: of a conversation, the number of messages up to the last turn in this sequence. Not stored.
        position: of an example of `EncodedExamples`: the `id` of this sequence, and the index in it. A changed copy has
            no position.
    """

    input_ids: list[int]
    trained: list[bool]
    num_truncated: int = 0
    label: int | None = None
    tags: list[int] | None = None
    answer: list[int] | None = None
    token_type_ids: list[int] | None = None
    prompt_positions: tuple[int, ...] = ()
    findings: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    others: tuple["EncodedExample", ...] = field(default=(), compare=False)
    num_messages: int = field(default=0, compare=False)
    position: tuple[int, int] | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def targets(self) -> list[int]:
        """Labels of the example in a batch: the class index, or one label for each token or tag."""
        if self.label is not None:
            return [self.label]
        if self.tags is not None:
            return self.tags
        if self.answer is not None:
            return self.answer
        return [token if trained else UNTRAINED for token, trained in zip(self.input_ids, self.trained, strict=True)]

    @property
    def num_targets(self) -> int:
        """Number of terms of the loss: trained tokens, tags, or 1 for a class."""
        if self.label is not None:
            return 1
        if self.answer is not None:
            return len(self.answer)
        return sum(self.trained if self.tags is not None else self.trained[1:])

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the model processes, the tokens of a decoder's answer included."""
        return len(self.input_ids) + len(self.answer or ())


@dataclass(frozen=True)
class Example:
    """An example as text, before tokenization.

    Attributes:
        prompt: text that the model is given. It never ends with a space.
        completion: text that the model learns to generate after the prompt, including the space between the two.
        label: label of the text without the words of the template, for data with labels.
        messages: conversation with `role` and `content`, instead of prompt and completion.
        tools: tools of the conversation, in OpenAI's spelling.
        untrained: indices of the assistant's messages that are not trained.
        spans: start and end of each field's text in `prompt`, in characters. A prompt that is too long is shortened
            inside these spans.
        virtual_token_offsets: for each virtual token that the template marks, the character offset in `prompt`.
        pair: second text that a classifier reads together with `prompt`.
        words: words of `prompt`, for data with tags.
        tags: tag of each word.
        has_added_space: whether `completion` begins with a space that the row does not have.
        findings: defects that were met when the row was read, as of `EncodedExample`.
    """

    prompt: str = ""
    completion: str = ""
    label: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    untrained: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    virtual_token_offsets: tuple[int, ...] = ()
    pair: str | None = None
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    has_added_space: bool = field(default=False, compare=False)
    findings: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def has_trained_turn(self) -> bool:
        """Whether a turn of the assistant in the conversation is trained."""
        return any(m["role"] == "assistant" and i not in self.untrained for i, m in enumerate(self.messages))

    def truncate_fields(self, max_characters: int) -> "Example":
        """Return a copy with each field's text in the prompt cut to its first `max_characters` characters."""
        text, copied_until, offsets = "", 0, list(self.virtual_token_offsets)
        for start, end in self.spans:
            new_end = min(end, start + max_characters)
            text += self.prompt[copied_until:new_end]
            removed = end - new_end
            offsets = [
                offset - min(removed, max(0, original - new_end))
                for offset, original in zip(offsets, self.virtual_token_offsets, strict=True)
            ]
            copied_until = end
        return replace(self, prompt=text + self.prompt[copied_until:], virtual_token_offsets=tuple(offsets), spans=())
