"""An example of a data set, as text and as token ids."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

__all__ = ["UNTRAINED", "EncodedExample", "Example", "TaskName"]

UNTRAINED = -100
"""The label that losses of torch and transformers leave out."""


@dataclass(frozen=True)
class EncodedExample:
    """An example as tokens, and what is to be learned of it: at most one of `label`, `tags` and `answer`.

    Attributes:
        input_ids: prompt, completion, end; or what a classifier or an encoder reads.
        trained: whether the loss counts each token. The very first of a text that goes on never is: nothing comes
            before it to predict it.
        cut: how many tokens were left out to fit the length.
        label: the number of the class that the text is of.
        tags: the number of the tag of every token, `UNTRAINED` where it has none.
        answer: the tokens that a decoder is to write.
        token_type_ids: which of two texts a token is of, for models that are told.
        prompt_positions: in front of which token each virtual token stands, where a template marks them; see `use_prompt_positions`.
    """

    input_ids: list[int]
    trained: list[bool]
    cut: int = 0
    label: int | None = None
    tags: list[int] | None = None
    answer: list[int] | None = None
    token_type_ids: list[int] | None = None
    prompt_positions: tuple[int, ...] = ()

    @property
    def targets(self) -> list[int]:
        """What is learned, as the labels of a batch have it: a class, or a number for every token."""
        if self.label is not None:
            return [self.label]
        if self.tags is not None:
            return self.tags
        if self.answer is not None:
            return self.answer
        return [token if trained else UNTRAINED for token, trained in zip(self.input_ids, self.trained, strict=True)]

    @property
    def num_targets(self) -> int:
        """How many numbers the loss is over: tokens, tags, or the one class."""
        if self.label is not None:
            return 1
        if self.answer is not None:
            return len(self.answer)
        return sum(self.trained if self.tags is not None else self.trained[1:])

    @property
    def num_tokens(self) -> int:
        """How many tokens a model reads."""
        return len(self.input_ids) + len(self.answer or ())


TaskName = Literal["causal_lm", "seq2seq_lm", "sequence_classification", "token_classification"]
"""What a model makes of a text: how it goes on, an answer, a label, or a tag for every word."""


@dataclass(frozen=True)
class Example:
    """A row as text, before tokens.

    Attributes:
        prompt: what the model is given; it never ends in a space.
        completion: what the model is to answer, with the space that parts it from the prompt.
        label: the bare label, for data with labels.
        messages: a conversation, instead of prompt and completion.
        spans: where in `prompt` the row's own texts stand; a prompt that is too long is shortened there.
        marks: in front of which character of `prompt` each virtual token stands, where a template marks them.
        pair: a second text that a classifier reads beside `prompt`.
        words, tags: the words of `prompt` and the tag of each, for data with tags.
    """

    prompt: str = ""
    completion: str = ""
    label: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    marks: tuple[int, ...] = ()
    pair: str | None = None
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def capped(self, cap: int) -> "Example":
        """Return the example with each of the row's own texts in its prompt cut to `cap` characters."""
        text, done, marks = "", 0, list(self.marks)
        for start, end in self.spans:
            kept = min(end, start + cap)
            text += self.prompt[done:kept]
            lost = end - kept
            marks = [now - min(lost, max(0, mark - kept)) for now, mark in zip(marks, self.marks, strict=True)]
            done = end
        return replace(self, prompt=text + self.prompt[done:], marks=tuple(marks), spans=())
