"""Greedy generation as a loop written by hand."""

import torch
from transformers import LogitsProcessorList

NEW = 8


def by_hand(logits, row, *, processors=(), sample=False, new=NEW):
    """Choose one token after another, from the whole row each time; stops after the end token (2)."""
    ids = torch.tensor([row])
    processors = LogitsProcessorList(processors)
    while ids.shape[1] < len(row) + new and (ids.shape[1] == len(row) or ids[0, -1] != 2):
        with torch.no_grad():
            scores = processors(ids, logits(ids)[:, -1].float())
        chosen = torch.multinomial(scores.softmax(-1), 1) if sample else scores.argmax(-1, keepdim=True)
        ids = torch.cat([ids, chosen], 1)
    return ids[0].tolist()


def beams_by_hand(logits, row, *, beams, new=NEW):
    """Return the score of the best of `beams` hypotheses (summed log-probability / length, no early stop)."""
    running, finished = [((), 0.0)], []
    for _ in range(new):
        ids = torch.tensor([[*row, *tokens] for tokens, _ in running])
        with torch.no_grad():
            steps = logits(ids)[:, -1].float().log_softmax(-1)
        grown = [
            ((*tokens, token), score + float(steps[i, token]))
            for i, (tokens, score) in enumerate(running)
            for token in steps[i].topk(2 * beams).indices.tolist()
        ]
        best = sorted(grown, key=lambda hypothesis: -hypothesis[1])[: 2 * beams]
        finished += [(tokens, score / len(tokens)) for tokens, score in best[:beams] if tokens[-1] == 2]
        running = [(tokens, score) for tokens, score in best if tokens[-1] != 2][:beams]
    finished += [(tokens, score / new) for tokens, score in running]
    return [*row, *max(finished, key=lambda hypothesis: hypothesis[1])[0]]


def trimmed(ids, row):
    """The row's own tokens and what was generated up to its end token, without padding on either side."""
    ids = ids.tolist()
    start = next(i for i in range(len(ids)) if ids[i : i + len(row)] == row)
    text, new = ids[start : start + len(row)], ids[start + len(row) :]
    return text + (new[: new.index(2) + 1] if 2 in new else new)
