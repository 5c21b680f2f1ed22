"""Defects of texts that their tokens show: special tokens inside, unknown characters, and lost characters."""

import re
from collections.abc import Sequence
from dataclasses import replace

from peftly.data.types import Example
from peftly.data.vocabulary import Vocabulary

__all__ = ["Findings", "TextChecks", "is_rendered", "without_end", "without_start"]

Findings = tuple[tuple[str, str], ...]
"""Pairs of a key of `FINDING_KINDS` and a detail."""

_MAX_CHARACTERS = 10
"""Maximum number of characters that a finding names."""
_MAX_DETAILS = 3
"""Number of examples of a batch whose characters are searched, which needs another pass of the tokenizer."""

_RENDERED = re.compile(
    r"\s*(<\||\[INST\]|<<SYS>>|<start_of_turn>|### ?(Human|User|Instruction|System)\b|(USER|Human|User): )"
)
"""Start of a text that is a rendered conversation, in the usual chat templates."""


def is_rendered(text: str) -> bool:
    """Return whether a text begins as a conversation that was rendered with a chat template."""
    return _RENDERED.match(text.removeprefix("<s>").removeprefix("<bos>").removeprefix("<|begin_of_text|>")) is not None


def without_start(example: Example, front_text: str) -> tuple[Example, Findings]:
    """Return an example without the special tokens at its start that the tokenizer adds again, and the finding.

    Args:
        example: an example of `RowFormat.examples`. The start is in the prompt, or in the completion without a prompt.
        front_text: text of the special tokens that the tokenizer puts before a text.
    """
    text = example.prompt or example.completion
    bare = text
    while front_text and (stripped := bare.lstrip()).startswith(front_text):
        bare = stripped[len(front_text) :]
    if bare == text:
        return example, ()
    finding = (("repeated_start", front_text),)
    if not example.prompt:
        return replace(example, completion=bare), finding
    removed = len(text) - len(bare)
    spans = tuple((max(0, start - removed), max(0, end - removed)) for start, end in example.spans)
    offsets = tuple(max(0, offset - removed) for offset in example.virtual_token_offsets)
    return replace(example, prompt=bare, spans=spans, virtual_token_offsets=offsets), finding


def without_end(text: str, end_text: str) -> tuple[str, Findings]:
    """Return a text without the end tokens at its end, which are added again, and the finding.

    Args:
        text: a completion, or a text that an encoder reads.
        end_text: text of the special tokens that end a text.
    """
    bare = text.rstrip()
    if not end_text or not bare.endswith(end_text):
        return text, ()
    while bare.endswith(end_text):
        bare = bare[: -len(end_text)]
        text, bare = bare, bare.rstrip()
    return text, (("repeated_end", end_text),)


class TextChecks:
    """Findings of the texts of a batch by their token ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Prepare the checks.

        Args:
            vocabulary: vocabulary of the base's tokenizer.
        """
        self._vocabulary = vocabulary
        self._special = vocabulary.special
        self._may_lose = vocabulary.may_lose("é")
        self._is_unknown: dict[str, bool] = {}
        self._num_details = 0

    def causal_findings(self, example: Example, prompt: Sequence[int], answer: Sequence[int]) -> Findings:
        """Return the findings of a prompt with a completion.

        Args:
            example: the example, without special tokens at its start and end.
            prompt: token ids of the prompt.
            answer: token ids of the completion.
        """
        findings = self._foreign_tokens(example.prompt, example.completion)
        if not self._special.isdisjoint(prompt) or not self._special.isdisjoint(answer):
            findings = self.special_tokens(example.prompt, example.completion)
            findings += self.input_findings(example.prompt, prompt) + self.unknown_target(example.completion, answer)
        if self._may_lose and self._vocabulary.may_lose(example.completion):
            findings += self._lost_characters(example.completion, answer)
        return findings

    def source_findings(self, example: Example, ids: Sequence[int], num_added: int) -> Findings:
        """Return the findings of the text that an encoder reads.

        Args:
            example: the example, without special tokens around its text.
            ids: token ids of the text.
            num_added: number of special tokens that the tokenizer adds to a text.
        """
        texts = (example.prompt,) if example.pair is None else (example.prompt, example.pair)
        foreign = self._foreign_tokens(*texts)
        if sum(map(self._special.__contains__, ids)) <= num_added:
            return foreign
        return foreign + self.special_tokens(*texts) + self.input_findings("\n".join(texts), ids)

    def _foreign_tokens(self, *texts: str) -> Findings:
        marked = (text for text in texts if "<" in text)  # every such token has one, and few texts have
        match = next(filter(None, map(self._vocabulary.foreign_pattern.search, marked)), None)
        return () if match is None else (("foreign_special_tokens", match[0].strip()),)

    def special_inside(self, texts: Sequence[str]) -> Findings:
        """Return the finding of special tokens inside texts."""
        match = next(filter(None, map(self._vocabulary.special_pattern.search, texts)), None)
        return () if match is None else (("special_tokens_in_text", match[0]),)

    def special_tokens(self, *texts: str) -> Findings:
        """Return the finding of special tokens inside texts; none if the first text is a rendered conversation."""
        pattern = self._vocabulary.special_pattern
        first = next(filter(None, texts), "")
        if is_rendered(first) or pattern.match(first.lstrip()):
            return ()
        return self.special_inside(texts)

    def input_findings(self, text: str, ids: Sequence[int]) -> Findings:
        """Return the finding of unknown characters in a text that the model reads.

        Args:
            text: the text.
            ids: token ids of the text.
        """
        num_unknown = sum(token == self._vocabulary.unknown for token in ids)
        return self._unknown_characters(
            "mostly_unknown" if 2 * num_unknown > len(ids) else "unknown_characters", text, ids
        )

    def target_findings(self, text: str, ids: Sequence[int]) -> Findings:
        """Return the findings of characters of a target that its tokens do not stand for.

        Args:
            text: text of the target.
            ids: token ids of the target.
        """
        findings = self.unknown_target(text, ids)
        return findings + self._lost_characters(text, ids) if self._vocabulary.may_lose(text) else findings

    def unknown_target(self, text: str, ids: Sequence[int]) -> Findings:
        """Return the finding of unknown characters in a target.

        Args:
            text, ids: as for `target_findings`.
        """
        return self._unknown_characters("unknown_target", text, ids)

    def _unknown_characters(self, kind: str, text: str, ids: Sequence[int]) -> Findings:
        unknown = self._vocabulary.unknown
        if unknown is None or unknown not in ids:
            return ()
        if self._num_details >= _MAX_DETAILS:
            return ((kind, ""),)
        parts = self._unknown_parts(text, unknown)
        self._num_details += bool(parts)
        # Without such a part, the text holds the unknown token itself, which is a special token.
        return ((kind, " ".join(parts[:_MAX_CHARACTERS])),) if parts else ()

    def _unknown_parts(self, text: str, unknown: int) -> list[str]:
        """Return the distinct unknown characters of a text, or the unknown words if each character is known."""
        text = self._vocabulary.special_pattern.sub(" ", text)
        characters = list(dict.fromkeys("".join(text.split())))
        new = [character for character in characters if character not in self._is_unknown]
        for character, ids in zip(new, self._vocabulary.bodies(new), strict=True):
            self._is_unknown[character] = unknown in ids
        if found := [character for character in characters if self._is_unknown[character]]:
            return found
        words = list(dict.fromkeys(text.split()))
        return [word[:40] for word, ids in zip(words, self._vocabulary.bodies(words), strict=True) if unknown in ids]

    def _lost_characters(self, text: str, ids: Sequence[int]) -> Findings:
        """Return the finding of characters that the tokens of a target do not give back, besides unknown ones."""
        lost = set(text.strip()) - set(self._vocabulary.decoded(ids)) - {" "}
        if lost and (unknown := self._vocabulary.unknown) is not None and unknown in ids:
            lost -= set("".join(self._unknown_parts(text, unknown)))
        shown = sorted(lost, key=text.index)[:_MAX_CHARACTERS]
        return (("changed_target", " ".join(map(repr, shown))),) if lost else ()
