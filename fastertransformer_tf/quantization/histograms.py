"""Histograms of magnitudes, and the ranges that several methods choose of them. Free of TensorFlow.

The methods are those of the FasterTransformer 4.0 quantization tools: percentile (the first edge
below which a share of all values lies), mse (least squared error of quantization), entropy (least
Kullback-Leibler divergence of the clipped from the quantized distribution; Migacz, "8-bit inference
with TensorRT", 2017) and max.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.quantization import integers

NUM_BINS = 2048
# A histogram grows to as many bins at most; what lies beyond is counted in the last. A tensor whose
# later batches are that much wider than its first is clipped there but for the method max.
MOST_BINS = 16 * NUM_BINS
METHODS = ("max", "percentile", "mse", "entropy")
# No range is searched below this bin: it would clip nearly all.
_FIRST_BIN = 128
# Candidates of a search; more of them differ by less than the choice matters.
_MOST_CANDIDATES = 512
# Levels of the magnitude of an int8.
_LEVELS = 128


@dataclasses.dataclass
class Histogram:
    """Counts of |x| in bins of one width, which grow by appending bins.

    Attributes:
      width: Of a bin: chosen so that the first values fill NUM_BINS.
      counts: int64 [bins].
      largest: The largest |x|.
    """

    width: float
    counts: np.ndarray
    largest: float

    @classmethod
    def for_values_up_to(cls, largest: float) -> Histogram:
        """Makes an empty one for values of which the first are not above `largest`."""
        return cls((largest or 1.0) / NUM_BINS, np.zeros(NUM_BINS, np.int64), 0.0)

    def add(self, counts: np.ndarray, largest: float) -> None:
        """Adds the counts of more values, in bins of this width.

        Args:
          counts: [bins], any number of them.
          largest: The largest of the values.
        """
        grown = np.zeros(max(len(self.counts), len(counts)), np.int64)
        grown[: len(self.counts)] = self.counts
        grown[: len(counts)] += counts
        self.counts = grown
        self.largest = max(self.largest, float(largest))

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, float64."""
        return (np.arange(len(self.counts)) + 0.5) * self.width

    def share_within(self, amax: float) -> float:
        """Returns the share, 0 to 1, of values in bins that do not lie beyond a range."""
        total = self.counts.sum()
        return float(self.counts[self.centres <= amax].sum() / total) if total else 1.0


class ChannelExtremes:
    """The smallest and the largest value of every channel of some tensors.

    Attributes:
      lowest: Point name to float32 [channels], of all batches so far.
      highest: Likewise.
    """

    def __init__(self) -> None:
        """No value has come yet."""
        self.lowest: dict[str, np.ndarray] = {}
        self.highest: dict[str, np.ndarray] = {}

    def add(self, name: str, low: np.ndarray, high: np.ndarray) -> None:
        """Adds a batch's extremes, float32 [channels] each.

        Raises:
          UserError: They are not finite.
        """
        check_finite({name: high - low})
        self.lowest[name] = np.minimum(self.lowest.get(name, low), low)
        self.highest[name] = np.maximum(self.highest.get(name, high), high)

    def centres(self) -> dict[str, np.ndarray]:
        """Returns the middle between the extremes of each channel, float64."""
        return {
            name: (self.lowest[name].astype(np.float64) + self.highest[name]) / 2
            for name in self.lowest
        }


def check_finite(values: Mapping[str, np.ndarray | float]) -> None:
    """Refuses values that are not finite.

    Raises:
      UserError: Naming their points.
    """
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(
            f"the model has values that are not finite, expected a trained one: {listed(bad)}"
        )


def choose_range(histogram: Histogram, method: str, percentile: float = 99.99) -> float:
    """Chooses a range.

    Args:
      histogram: Of the tensor.
      method: One of METHODS.
      percentile: Of the values to represent, for that method.

    Returns:
      The range above 0; 1 where all values are 0.
    """
    if histogram.largest == 0:
        return float(integers.RANGE_OF_ZEROS)
    if method == "max":
        return histogram.largest
    if method == "percentile":
        return percentile_range(histogram, percentile)
    return {"mse": mse_range, "entropy": entropy_range}[method](histogram)


def percentile_range(histogram: Histogram, percentile: float) -> float:
    """Returns the first bin edge that `percentile` % of all values do not exceed."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    first = int(np.searchsorted(share, percentile / 100 - 1e-12))
    return min((min(first, len(share) - 1) + 1) * histogram.width, histogram.largest)


def squared_error(histogram: Histogram, amax: float) -> float:
    """Returns the mean squared error of quantizing the values with a range."""
    scale = integers.BOUND / amax
    centres = histogram.centres
    rounded = np.minimum(np.rint(centres * scale), integers.BOUND) / scale
    return float(np.average((rounded - centres) ** 2, weights=histogram.counts))


def _candidates(num_bins: int) -> np.ndarray:
    """The bins that a search tries, the last one included."""
    first = min(_FIRST_BIN, num_bins - 1)
    stride = -(-(num_bins - first) // _MOST_CANDIDATES)
    return np.arange(num_bins - 1, first - 1, -stride)[::-1]


def mse_range(histogram: Histogram) -> float:
    """Returns the range of least squared error among bin centres."""
    ranges = histogram.centres[_candidates(len(histogram.counts))]
    errors = [squared_error(histogram, amax) for amax in ranges]
    return float(ranges[int(np.argmin(errors))])


def entropy_range(histogram: Histogram) -> float:
    """Returns the range of least divergence among bin edges; the last of equal ones."""
    counts = histogram.counts.astype(np.float64)
    if len(counts) > 1:
        counts[0] = counts[1]  # Zeros say nothing about the range.
    bins = _candidates(len(counts)) + 1
    divergences = np.array([_divergence(counts, int(end)) for end in bins])
    best = np.flatnonzero(divergences == divergences.min())[-1]
    return float(bins[best] * histogram.width)


def _divergence(counts: np.ndarray, end: int) -> float:
    """KL divergence of the counts clipped at bin `end` from their quantization to 128 levels."""
    inside = counts[:end]
    if not inside.any():
        return np.inf
    level = np.arange(end) * _LEVELS // end
    occupied = inside > 0
    sums = np.bincount(level, inside, _LEVELS)
    sizes = np.bincount(level, occupied, _LEVELS)
    quantized = np.where(occupied, (sums / np.maximum(sizes, 1))[level], 0)
    reference = inside.copy()
    reference[-1] += counts[end:].sum()
    if reference[-1] > 0 and not occupied[-1]:
        # What was clipped lies where the quantized distribution has nothing.
        return np.inf
    p, q = reference[occupied] / reference.sum(), quantized[occupied] / quantized.sum()
    return float(np.sum(p * np.log(p / q)))
