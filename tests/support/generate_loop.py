"""Generation as a loop without a cache: the whole text goes through the model for every new token."""

import torch
from transformers import LogitsProcessorList

NEW = 8
"""Number of new tokens."""
END = 2
"""Id of the end token."""


def by_hand(logits_of, text, *, processors=(), sample=False, new=NEW):
    """Choose one token after another, greedily or at random, up to the end token.

    Args:
        logits_of: from ids (1, length) to logits (1, length, vocabulary).
        text: token ids.
        processors: logits processors of transformers.
        sample: whether to draw from the distribution.
        new: largest number of new tokens.

    Returns:
        Token ids of the text and its continuation.
    """
    ids = torch.tensor([text])
    processors = LogitsProcessorList(processors)
    while ids.shape[1] < len(text) + new and (ids.shape[1] == len(text) or ids[0, -1] != END):
        with torch.no_grad():
            scores = processors(ids, logits_of(ids)[:, -1].float())
        chosen = torch.multinomial(scores.softmax(-1), 1) if sample else scores.argmax(-1, keepdim=True)
        ids = torch.cat([ids, chosen], 1)
    return ids[0].tolist()


def beams_by_hand(logits_of, text, *, beams, new=NEW):
    """Return the text with the best of `beams` continuations, by summed log-probability / length, no early stop."""
    running, finished = [((), 0.0)], []
    for _ in range(new):
        ids = torch.tensor([[*text, *tokens] for tokens, _ in running])
        with torch.no_grad():
            steps = logits_of(ids)[:, -1].float().log_softmax(-1)
        extended = [
            ((*tokens, token), score + float(steps[i, token]))
            for i, (tokens, score) in enumerate(running)
            for token in steps[i].topk(2 * beams).indices.tolist()
        ]
        best = sorted(extended, key=lambda hypothesis: -hypothesis[1])[: 2 * beams]
        finished += [(tokens, score / len(tokens)) for tokens, score in best[:beams] if tokens[-1] == END]
        running = [(tokens, score) for tokens, score in best if tokens[-1] != END][:beams]
    finished += [(tokens, score / new) for tokens, score in running]
    return [*text, *max(finished, key=lambda hypothesis: hypothesis[1])[0]]


def trimmed(ids, text):
    """Return a text and its continuation up to the end token, without padding on either side."""
    ids = ids.tolist()
    start = next(i for i in range(len(ids)) if ids[i : i + len(text)] == text)
    new = ids[start + len(text) :]
    return text + (new[: new.index(END) + 1] if END in new else new)
