"""Answers that a language model generates for held-out examples without labels, beside the expected answers."""

from typing import TYPE_CHECKING

from peftly.data import EncodedExample, Example, RowFormat, Split, chat_ends
from peftly.errors import ConfigError
from peftly.evaluation.metrics import Prediction
from peftly.inference import completion_text, generate, greedy_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_answers", "generate_answers", "has_answers"]

_MIN_NEW_TOKENS = 64
"""Tokens that every answer may have, so that an answer which does not end shows."""

_ANSWER_KINDS = ("completion", "alpaca", "chat")


def has_answers(row_format: RowFormat) -> bool:
    """Return whether examples of a format have an answer to generate: a text after a prompt, which is not a label."""
    return row_format.kind in _ANSWER_KINDS


def check_answers(row_format: RowFormat) -> None:
    """Refuse to generate answers for examples that have none.

    Raises:
        ConfigError: the examples have labels or tags, or are texts without a prompt.
    """
    if not has_answers(row_format):
        raise ConfigError(
            f"examples of kind {row_format.kind!r} have no answers to generate; only completions and conversations have"
        )


def generate_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    split: Split,
    count: int,
    *,
    batch_size: int,
) -> list[Prediction]:
    """Generate the answers of the first examples, greedily, from the tokens that training showed in front of them.

    The answer of a conversation is the assistant's last turn. A generated answer is cut at a quarter more tokens than
    the longest expected answer has, but not below 64.

    Args:
        model: causal language model or encoder-decoder.
        tokenizer: tokenizer of the model.
        split: encoded examples with answers.
        count: maximum number of examples.
        batch_size: number of examples per forward pass.

    Returns:
        For each example the text in front of its answer, the expected and the generated answer.
    """
    examples, encoded = list(split.examples[:count]), list(split.encoded[:count])
    spans = [_answer_span(example) for example in encoded]
    longest = max(end - start for start, end in spans)
    stop = chat_ends(tokenizer).texts if examples[0].messages else ()
    generated = generate(
        model,
        tokenizer,
        [_prompt(example, start) for example, (start, _) in zip(encoded, spans, strict=True)],
        max_new_tokens=max(_MIN_NEW_TOKENS, longest + longest // 4),
        batch_size=batch_size,
        stop=stop,
        adapters=None if split.adapters is None else split.adapters[:count],
    )
    ends = greedy_settings(model, tokenizer).eos_token_id or ()
    expected = [
        completion_text(tokenizer, example.input_ids[start:end], stop, ends)
        for example, (start, end) in zip(encoded, spans, strict=True)
    ]
    return [
        Prediction(*_texts(example, answer), text.strip(), {})
        for example, answer, text in zip(examples, expected, generated, strict=True)
    ]


def _answer_span(encoded: EncodedExample) -> tuple[int, int]:
    """Return start and end of the last trained tokens; of an encoder-decoder, those of the decoder's answer."""
    if encoded.answer is not None:
        return 0, len(encoded.answer)
    end = len(encoded.trained) - encoded.trained[::-1].index(True)
    start = next((index for index in range(end - 1, -1, -1) if not encoded.trained[index]), -1) + 1
    return max(start, 1), end  # a text without a prompt goes on from its first token


def _prompt(encoded: EncodedExample, start: int) -> EncodedExample:
    """Return the tokens from which an answer is generated."""
    if encoded.answer is not None:
        start = len(encoded.input_ids)
    return EncodedExample(encoded.input_ids[:start], [False] * start, prompt_positions=encoded.prompt_positions)


def _texts(example: Example, answer: str) -> tuple[str, str]:
    """Return the text in front of an answer and the expected answer. For a conversation, both are messages.

    Args:
        example: example as text.
        answer: text of the last trained tokens.
    """
    if not example.messages:
        return example.prompt, example.completion.strip()
    contents = [str(message.get("content") or "").strip() for message in example.messages]
    turns = [index for index, message in enumerate(example.messages) if message["role"] == "assistant"]
    # The tokens can be of an earlier turn, where several examples are made of a conversation, or of calls of tools.
    turn = next((index for index in reversed(turns) if contents[index] == answer.strip()), turns[-1])
    return contents[turn - 1] if turn else "", answer.strip()
