"""Choice of validation examples from the training examples."""

from collections.abc import Sequence

from peftly.data.collate import epoch_order

__all__ = ["choose_validation"]

_EPOCH = -1
"""Epoch number of the random order that the choice uses. Training has no epoch with this number."""


def choose_validation(keys: Sequence[int], labels: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Choose validation examples, stratified by label.

    The choice has the share of each label as nearly as whole numbers allow (largest remainder method), and leaves at
    least one training example of each label. Examples with a unique prompt are chosen first, so that training and
    validation share no prompts if possible.

    Args:
        keys: `prompt_key` of each training example.
        labels: number of each training example's label.
        fraction: fraction of the examples to choose, from 0 to 1.
        seed: random seed.

    Returns:
        Indices of the chosen examples, sorted; empty if there are too few examples.
    """
    import numpy as np

    order = np.array(epoch_order(len(keys), seed=seed, epoch=_EPOCH), dtype=np.int64)
    _, key_numbers, counts = np.unique(np.array(keys, dtype=np.uint64), return_inverse=True, return_counts=True)
    is_repeated = (counts > 1)[key_numbers]
    label_of_index = np.array(labels, dtype=np.int64)
    total = max(1, round(fraction * len(keys)))
    known, sizes = (values.tolist() for values in np.unique(label_of_index, return_counts=True))
    exact = {label: fraction * size for label, size in zip(known, sizes, strict=True)}
    quota = {label: int(exact[label]) for label in known}
    for label, size in sorted(zip(known, sizes, strict=True), key=lambda pair: quota[pair[0]] - exact[pair[0]]):
        if sum(quota.values()) < total and quota[label] < size - 1:
            quota[label] += 1
    chosen = []
    for label in known:
        of_label = order[label_of_index[order] == label]
        by_uniqueness = of_label[np.argsort(is_repeated[of_label], kind="stable")]
        chosen += by_uniqueness[: quota[label]].tolist()
    return sorted(chosen)
