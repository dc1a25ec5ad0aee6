"""Batches of random lengths, the same for every engine; knows no framework."""

import numpy as np


def ragged_lengths(batch: int, seq: int, batches: int, seed: int = 3) -> np.ndarray:
    """Lengths of random batches, each in 1..S: int32 [batches, B]; the longest of all is S."""
    lengths = np.random.default_rng(seed).integers(1, seq + 1, (batches, batch), dtype=np.int32)
    lengths[0, 0] = seq
    return lengths


def is_real(lengths: np.ndarray, seq: int) -> np.ndarray:
    """Which of S rows hold a token: bool, the shape of `lengths` and S."""
    return np.arange(seq) < lengths[..., None]
