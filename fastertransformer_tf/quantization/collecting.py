"""Looks at the tensors of a point encoder: histograms of magnitudes, extremes of channels.

Padding does not count: of an activation the rows of real tokens, of attention scores and
probabilities the entries where query and key are both real.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from fastertransformer_tf.quantization import histograms, points

_tf1 = tf.compat.v1


class Recorder:
    """A point function that changes nothing and remembers.

    Attributes:
      tensors: Point name to the tensor that passed.
    """

    def __init__(self) -> None:
        """Nothing has passed yet."""
        self.tensors: dict[str, tf.Tensor] = {}

    def __call__(self, name: str, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the tensor."""
        self.tensors[name] = tensor
        return tensor


class HistogramCollector:
    """Counts the magnitudes of activations; kernels are left out.

    Attributes:
      histograms: Point name to histogram, of all batches so far.
    """

    def __init__(self, tensors: Mapping[str, tf.Tensor], input_mask: tf.Tensor) -> None:
        """Adds the counting to the default graph.

        Args:
          tensors: Point name to tensor.
          input_mask: int32 [B,S], not 0 for real tokens.
        """
        self.histograms: dict[str, histograms.Histogram] = {}
        self._largest: dict[str, tf.Tensor] = {}
        self._widths: dict[str, tf.Tensor] = {}
        self._counts: dict[str, tf.Tensor] = {}
        # Several points read one tensor, which is counted once: point name to the first of them.
        self._counted_as: dict[str, str] = {}
        first_name: dict[Any, str] = {}
        is_real = tf.not_equal(input_mask, 0)
        for name, tensor in tensors.items():
            split = points.split_name(name)
            scope = split[1] if split else ""
            if scope in points.KERNEL_SCOPES:
                continue
            self._counted_as[name] = first_name.setdefault(tensor.ref(), name)
            if self._counted_as[name] != name:
                continue
            values = tf.abs(tf.cast(real_values(tensor, is_real, scope), tf.float32))
            # With a zero: a batch may have no real token.
            self._largest[name] = tf.reduce_max(tf.concat([values, [0.0]], axis=0))
            self._widths[name] = _tf1.placeholder(tf.float32, [])
            bins = tf.minimum(values / self._widths[name], histograms.MOST_BINS - 1)
            self._counts[name] = tf.math.bincount(tf.cast(bins, tf.int32))

    def run(self, session: Any, feeds: Mapping[tf.Tensor, np.ndarray]) -> None:
        """Counts the values of a batch; the first one decides how wide bins are.

        Raises:
          UserError: Values are not finite, by the names of their points.
        """
        if not self.histograms:
            largest = session.run(self._largest, feeds)
            histograms.check_finite(largest)
            made = {
                name: histograms.Histogram.for_values_up_to(float(value))
                for name, value in largest.items()
            }
            self.histograms = {name: made[first] for name, first in self._counted_as.items()}
        widths = {width: self.histograms[name].width for name, width in self._widths.items()}
        counts, largest = session.run((self._counts, self._largest), {**feeds, **widths})
        histograms.check_finite(largest)
        for name, largest_value in largest.items():
            self.histograms[name].add(counts[name], largest_value)


class ChannelCollector(histograms.ChannelExtremes):
    """Finds the smallest and the largest value of every channel."""

    def __init__(self, tensors: Mapping[str, tf.Tensor], input_mask: tf.Tensor) -> None:
        """Adds the search to the default graph.

        Args:
          tensors: Point name to tensor, [B,S,channels].
          input_mask: int32 [B,S], not 0 for real tokens.
        """
        super().__init__()
        self._extremes: dict[str, tuple[tf.Tensor, tf.Tensor]] = {}
        is_real = tf.not_equal(input_mask, 0)
        for name, tensor in tensors.items():
            rows = tf.cast(tf.boolean_mask(tensor, is_real), tf.float32)
            self._extremes[name] = (tf.reduce_min(rows, axis=0), tf.reduce_max(rows, axis=0))

    def run(self, session: Any, feeds: Mapping[tf.Tensor, np.ndarray]) -> None:
        """Looks at a batch.

        Raises:
          UserError: Values are not finite, by the names of their points.
        """
        found = session.run(self._extremes, feeds)
        for name, (low, high) in found.items():
            self.add(name, low, high)


def real_values(tensor: tf.Tensor, is_real: tf.Tensor, scope: str) -> tf.Tensor:
    """Returns, in one dimension, the values of a point's tensor that belong to real tokens."""
    if scope not in points.OVER_KEYS:
        return tf.reshape(tf.boolean_mask(tensor, is_real), [-1])
    pairs = is_real[:, :, tf.newaxis] & is_real[:, tf.newaxis, :]
    by_heads = tf.transpose(tensor, [0, 2, 3, 1])
    return tf.reshape(tf.boolean_mask(by_heads, pairs), [-1])
