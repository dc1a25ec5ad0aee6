"""The batches of a training: a function of seed and step, so that a resumed one goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fastertransformer_tf import spec
from fastertransformer_tf.training.options import TrainingOptions


def num_rows(features: Mapping[str, np.ndarray]) -> int:
    """Returns the number of examples.

    Raises:
      ValueError: The features differ in it, or there is none.
    """
    rows = {name: len(value) for name, value in features.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise ValueError(f"features have rows {rows}, expected the same number of at least 1")
    return next(iter(rows.values()))


def batches(
    features: Mapping[str, np.ndarray], options: TrainingOptions, step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of `step` and after: epochs end to end, each in an order of its own."""
    num_examples = num_rows(features)
    order: dict[int, np.ndarray] = {}
    position = step * options.train_batch_size
    while True:
        rows = []
        for i in range(position, position + options.train_batch_size):
            epoch, row = divmod(i, num_examples)
            if epoch not in order:
                order = {
                    e: np.random.default_rng([options.seed, e]).permutation(num_examples)
                    for e in (*[e for e in order if e >= epoch - 1], epoch)
                }
            rows.append(order[epoch][row])
        position += options.train_batch_size
        batch = {name: value[rows] for name, value in features.items()}
        longest = max(1, int(batch["input_mask"].sum(axis=1).max()))
        for name in spec.MODEL_INPUTS:
            batch[name] = batch[name][:, :longest]
        yield batch
