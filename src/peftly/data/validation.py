"""Choice of validation examples from the training examples."""

from collections import Counter
from collections.abc import Sequence

from peftly.data.collate import epoch_order
from peftly.data.overlaps import prompt_key
from peftly.data.types import Example

__all__ = ["choose_validation"]

_EPOCH = -1
"""Epoch number of the random order that the choice uses. Training has no epoch with this number."""


def choose_validation(examples: Sequence[Example], fraction: float, seed: int) -> list[int]:
    """Choose validation examples, stratified by label.

    The choice has the share of each label as nearly as whole numbers allow (largest remainder method), and leaves at
    least one training example of each label. Examples with a unique prompt are chosen first, so that training and
    validation share no prompts if possible.

    Args:
        examples: training examples.
        fraction: fraction of the examples to choose, from 0 to 1.
        seed: random seed.

    Returns:
        Indices of the chosen examples, sorted; empty if there are too few examples.
    """
    keys = [prompt_key(example) for example in examples]
    num_with_key = Counter(keys)
    indices_of_label: dict[str | None, list[int]] = {}
    for index in epoch_order(len(examples), seed=seed, epoch=_EPOCH):
        indices_of_label.setdefault(examples[index].label, []).append(index)
    total = max(1, round(fraction * len(examples)))
    labels = sorted(indices_of_label, key=lambda label: label or "")
    exact = {label: fraction * len(indices_of_label[label]) for label in labels}
    quota = {label: int(exact[label]) for label in labels}
    for label in sorted(labels, key=lambda label: quota[label] - exact[label]):
        if sum(quota.values()) < total and quota[label] < len(indices_of_label[label]) - 1:
            quota[label] += 1
    return sorted(
        index
        for label in labels
        for index in sorted(indices_of_label[label], key=lambda index: num_with_key[keys[index]] > 1)[: quota[label]]
    )
