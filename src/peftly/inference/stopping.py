"""Stop texts: a completion ends in front of the first of them. Streams of text that respect stop texts."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextStreamer

from peftly.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["StopTexts", "TextPieces", "completion_text", "stop_texts", "stop_token_ids"]


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return one or several stop texts, or none, as a tuple.

    Raises:
        ConfigError: a stop text is empty.
    """
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in texts:
        raise ConfigError("stop has an empty text, which would end every completion at once; leave it out")
    return texts


def stop_token_ids(stop: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids of special tokens among stop texts, such as <|im_end|>, which the decoded text leaves out."""
    if not stop:
        return []
    return [number for number, token in tokenizer.added_tokens_decoder.items() if token.special and str(token) in stop]


def _stop_start(text: str, stop: Sequence[str]) -> int | None:
    """Return the offset in `text` of the stop text that is complete first; None if there is no stop text."""
    found = [(start + len(one), start) for one in stop if (start := text.find(one)) >= 0]
    return min(found)[1] if found else None


class StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends the generation of a batch element when its completion contains one of its stop texts.

    Args:
        tokenizer: tokenizer of the model.
        stops: stop texts of each batch element; beam search repeats the elements.
        prompt_length: number of tokens in front of each completion.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[Sequence[str]], prompt_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **_options: Any) -> Tensor:
        """Return for each batch element whether its completion contains a stop text, (batch,)."""
        completions = input_ids[:, self._prompt_length :].tolist()
        repeats = len(completions) // len(self._stops)
        has_stopped = [
            _stop_start(_decoded(self._tokenizer, ids), self._stops[index // repeats]) is not None
            for index, ids in enumerate(completions)
        ]
        return torch.tensor(has_stopped, device=input_ids.device)


def completion_text(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], stop: Sequence[str], ends: Collection[int]
) -> str:
    """Return the text of a completion in front of its end token and its stop text.

    The search repeats the one during generation token by token. The text therefore does not depend on the tokens that a
    batch element gets while other elements go on.

    Args:
        tokenizer: tokenizer of the model.
        ids: token ids of the completion, prompt excluded.
        stop: stop texts.
        ends: ids of the tokens that end a completion.
    """
    ids = ids[: next((index for index, token in enumerate(ids) if token in ends), None)]
    for count in range(1, len(ids) + 1) if stop else ():
        text = _decoded(tokenizer, ids[:count])
        if (start := _stop_start(text, stop)) is not None:
            return text[:start]
    return _decoded(tokenizer, ids)


def _decoded(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return cast(str, tokenizer.decode(ids, skip_special_tokens=True))


class TextPieces(TextStreamer):  # type: ignore[misc]
    """Passes pieces of text to a function instead of printing them.

    Text that may be the beginning of a stop text is held back until the following text decides.

    Args:
        tokenizer: tokenizer of the model.
        stream: function that receives the pieces.
        stop: stop texts.
        ends: ids of the tokens that end a completion, which the text leaves out.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stream: Callable[[str], None],
        stop: Sequence[str],
        ends: Collection[int] = (),
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._ends = ends
        self._stream = stream
        self._stop = stop
        self._pending = ""
        self._has_stopped = False

    def put(self, value: Tensor) -> None:
        """Take the tokens of the prompt, and then each token of the completion."""
        if self.next_tokens_are_prompt or int(value.flatten()[-1]) not in self._ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on the text that is certain to be part of the completion."""
        if self._has_stopped:
            return
        self._pending += text
        end = _stop_start(self._pending, self._stop)
        self._has_stopped = end is not None
        if end is None:
            end = len(self._pending) - (0 if stream_end else _held_back(self._pending, self._stop))
        piece, self._pending = self._pending[:end], self._pending[end:]
        if piece:
            self._stream(piece)


def _held_back(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of `text` with which a stop text begins."""
    lengths = [length for one in stop for length in range(1, len(one)) if text.endswith(one[:length])]
    return max(lengths, default=0)
