"""Scores of generated texts against expected texts: exact match, ROUGE, chrF and BLEU."""

from collections.abc import Sequence
from typing import Any

import regex

__all__ = ["missing_scores", "text_scores", "word_tokens"]

_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Name of each ROUGE score in the library, by field of `Evaluation`."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
"""Scripts that are written without spaces between words."""

_WORD = regex.compile(rf"(?V1)[{_UNSPACED}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+|\p{{S}}")
_LETTER_OF = {
    "zh": regex.compile(r"\p{Han}"),
    "char": regex.compile(r"(?V1)[\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"),
}
_LETTER = regex.compile(r"\p{L}")


def missing_scores() -> str | None:
    """Return a sentence on the scores whose libraries are not installed; None if all are."""
    try:
        import rouge_score  # noqa: F401
        import sacrebleu  # noqa: F401
    except ImportError:
        return "ROUGE, chrF and BLEU need rouge-score and sacrebleu: pip install 'peftly[scores]'"
    return None


def text_scores(expected: Sequence[str], generated: Sequence[str]) -> dict[str, Any]:
    """Return the scores of generated texts, as fields of an `Evaluation`.

    Args:
        expected: expected texts, at least one.
        generated: generated text for each of them.

    Returns:
        `exact_match`, and ROUGE as means of F1 over the texts, between 0 and 1; chrF and BLEU of all texts together,
        between 0 and 100; and the tokenizer of BLEU. Spaces at both ends of a text do not count. Without the libraries
        of the other scores, `exact_match` only; see `missing_scores`.
    """
    expected, generated = [text.strip() for text in expected], [text.strip() for text in generated]
    pairs = list(zip(expected, generated, strict=True))
    exact = {"exact_match": sum(target == prediction for target, prediction in pairs) / len(pairs)}
    return exact if missing_scores() else exact | _library_scores(expected, generated)


def _library_scores(expected: Sequence[str], generated: Sequence[str]) -> dict[str, Any]:
    """Return the scores of `text_scores` that libraries compute."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    tokenizer = _bleu_tokenizer(expected)
    # Texts of fewer than four tokens have no n-grams of four, which the effective order leaves out.
    bleu = BLEU(tokenize=tokenizer, effective_order=True)
    rouge = RougeScorer(list(_ROUGE.values()), tokenizer=_RougeTokenizer())
    scores = [rouge.score(target, prediction) for target, prediction in zip(expected, generated, strict=True)]
    return {
        **{key: sum(score[name].fmeasure for score in scores) / len(scores) for key, name in _ROUGE.items()},
        "chrf": CHRF().corpus_score(generated, [expected]).score,
        "bleu": bleu.corpus_score(generated, [expected]).score,
        "bleu_tokenizer": tokenizer,
    }


def word_tokens(text: str) -> list[str]:
    """Return the tokens that ROUGE compares: words of any script in lower case, and symbols; no punctuation.

    Each character of a script without spaces, such as Chinese, is a token. The tokenizer of `rouge-score` would drop
    every letter but a to z.
    """
    tokens: list[str] = _WORD.findall(text.lower())
    return tokens


class _RougeTokenizer:
    """`word_tokens` as the tokenizer that `rouge-score` takes."""

    def tokenize(self, text: str) -> list[str]:
        return word_tokens(text)


def _bleu_tokenizer(texts: Sequence[str]) -> str:
    """Return the tokenizer of sacrebleu for texts: "13a", "zh" for Chinese, "char" for other scripts without spaces."""
    text = " ".join(texts)
    letters = len(_LETTER.findall(text))
    counts = {name: len(pattern.findall(text)) for name, pattern in _LETTER_OF.items()}
    if 2 * sum(counts.values()) <= letters:
        return "13a"
    # Japanese mixes Chinese characters with its own.
    return "char" if 10 * counts["char"] > counts["zh"] else "zh"
