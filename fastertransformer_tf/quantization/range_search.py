"""Chooses ranges by the error that they cause in what a layer computes.

The error of a tensor itself says little: a layer norm follows, so that an outlier of one token is
harmless to all others, or it is not. So each range that the op rounds with is chosen among several
by running its layer on calibration data and comparing with the float layer's output. Layers follow
each other: a layer's input is what the rounded layers below it give. Free of TensorFlow.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import tqdm

from fastertransformer_tf.quantization import histograms, points, scale_list

_PERCENTILES = (99.0, 99.5, 99.9, 99.95, 99.99, 99.995, 99.999)
# Ranges nearer to each other than this are not both tried.
_LEAST_RATIO = 1.03
# What the search starts from.
START_PERCENTILE = 99.99


def searched_slots(int8_mode: int) -> list[int]:
    """Lists the slots of a layer that a mode rounds with, in the order of computation."""
    return sorted(
        {
            point.rounded_with
            for point in points.POINTS
            if int8_mode in point.rounded_in and point.rounded_with is not None
        }
    )


def candidates(histogram: histograms.Histogram) -> list[float]:
    """Lists the ranges that are tried for a tensor, from the smallest to the largest."""
    if histogram.largest == 0:
        return []
    tried = {histograms.percentile_range(histogram, share) for share in _PERCENTILES}
    kept: list[float] = []
    for candidate in sorted(tried | {histograms.mse_range(histogram), histogram.largest}):
        if not kept or candidate > _LEAST_RATIO * kept[-1]:
            kept.append(candidate)
    return kept


class LayerErrors(Protocol):
    """How far layers with rounded tensors are off the float model's, on some batches."""

    def error(self, layer: int, slots: np.ndarray) -> float:
        """Returns the squared error of a layer's output, summed over real tokens.

        Args:
          layer: Its index; `advance` has been called for those below it.
          slots: Ranges, float32 [L,16].
        """

    def advance(self, layer: int, slots: np.ndarray) -> None:
        """Makes the output of a layer the input of the next."""


def search(
    counted: Mapping[str, histograms.Histogram],
    slots: np.ndarray,
    int8_mode: int,
    errors: LayerErrors,
) -> np.ndarray:
    """Chooses the ranges of all slots that a mode rounds with, one after the other.

    Args:
      counted: Point name to histogram.
      slots: The ranges to start from, float32 [L,16].
      int8_mode: 1 or 2.
      errors: Of the same model.

    Returns:
      The ranges, float32 [L,16].
    """
    searched = searched_slots(int8_mode)
    slots = slots.copy()
    total = len(slots) * len(searched)
    with tqdm.tqdm(total=total, desc="choosing ranges", unit="tensor", file=sys.stderr) as bar:
        for layer in range(len(slots)):
            least = errors.error(layer, slots)
            for slot in searched:
                histogram = counted[points.full_name(layer, points.BY_SLOT[slot].scope)]
                for candidate in candidates(histogram):
                    tried = slots.copy()
                    tried[layer, slot] = candidate
                    error = errors.error(layer, tried)
                    if error < least:
                        least, slots = error, tried
                bar.update()
            errors.advance(layer, slots)
    slots[:-1, scale_list.LAST_OUTPUT] = slots[1:, 0]
    return slots
