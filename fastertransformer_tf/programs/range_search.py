"""Chooses ranges by the error that they cause in what a layer computes.

The error of a tensor itself says little: a layer norm follows, so that an outlier of one token is
harmless to all others, or it is not. So each range that the op rounds with is chosen among several
by running its layer on calibration data and comparing with the float layer's output. Layers follow
each other: a layer's input is what the rounded layers below it give.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tqdm

from fastertransformer_tf.models import modeling, point_encoder
from fastertransformer_tf.programs import inference
from fastertransformer_tf.quantization import (
    collecting,
    histograms,
    points,
    scale_list,
    simulation,
)

_tf1 = tf.compat.v1
Build = Callable[[modeling.EncoderOptions], inference.Model]
Batch = Mapping[str, np.ndarray]

_PERCENTILES = (99.0, 99.5, 99.9, 99.95, 99.99, 99.995, 99.999)
# Ranges nearer to each other than this are not both tried.
_LEAST_RATIO = 1.03
# What the search starts from.
START_PERCENTILE = 99.99
# The point that a layer's input passes first.
_ENTRY = "attention/output/add_residual_input_quantizer"


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


class LayerErrors:
    """How far layers with rounded tensors are off the float model's, on some batches."""

    def __init__(
        self,
        build: Build,
        kernels: Sequence[Mapping[str, np.ndarray]],
        int8_mode: int,
        batches: Sequence[Batch],
    ) -> None:
        """Runs the float model and builds the rounded one.

        Args:
          build: Builds the model, whose encoder passes its points.
          kernels: For each layer the op input of a kernel to its range.
          int8_mode: 1 or 2.
          batches: Inputs of the model.
        """
        self._batches = batches
        # For each batch the input of every layer, and the output of the last.
        self._expected = self._run_float(build, len(kernels))
        self._inputs = [states[0] for states in self._expected]
        self._slots: tf.Tensor = None
        simulated: simulation.SimulatedInt8 | None = None
        recorder = collecting.Recorder()

        def point(name: str, tensor: tf.Tensor) -> tf.Tensor:
            nonlocal simulated
            if simulated is None:  # The graph of the model is the default one only here.
                shape = [len(kernels), scale_list.NUM_SLOTS]
                self._slots = _tf1.placeholder(tf.float32, shape)
                simulated = simulation.SimulatedInt8(self._slots, kernels, int8_mode)
            return simulated(name, recorder(name, tensor))

        self._model = build(_options(point))
        self._states = _layer_states(recorder.tensors, len(kernels))
        with self._model.graph.as_default():
            self._reference = _tf1.placeholder(tf.float32, [None, None, None])
            is_real = tf.not_equal(self._model.inputs["input_mask"], 0)
            self._errors = [
                tf.reduce_sum(
                    tf.boolean_mask(tf.math.squared_difference(state, self._reference), is_real)
                )
                for state in self._states[1:]
            ]

    def __enter__(self) -> LayerErrors:
        """Returns itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Closes the model's session."""
        self._model.session.close()

    def _run_float(self, build: Build, num_layers: int) -> list[list[np.ndarray]]:
        """Returns, for each batch, the states of the float model: L + 1 arrays [B,S,H]."""
        recorder = collecting.Recorder()
        with build(_options(recorder)) as model:
            states = _layer_states(recorder.tensors, num_layers)
            return [model.session.run(states, feed_dict(model, batch)) for batch in self._batches]

    def _feeds(self, batch: int, layer: int, slots: np.ndarray) -> dict[tf.Tensor, np.ndarray]:
        """Feeds a layer's input in place of the layers below it."""
        return {
            **feed_dict(self._model, self._batches[batch]),
            self._slots: slots,
            self._states[layer]: self._inputs[batch],
        }

    def error(self, layer: int, slots: np.ndarray) -> float:
        """Returns the squared error of a layer's output, summed over real tokens.

        Args:
          layer: Its index; `advance` has been called for those below it.
          slots: Ranges, float32 [L,16].
        """
        total = 0.0
        for batch, expected in enumerate(self._expected):
            feeds = self._feeds(batch, layer, slots)
            feeds[self._reference] = expected[layer + 1]
            total += float(self._model.session.run(self._errors[layer], feeds))
        return total

    def advance(self, layer: int, slots: np.ndarray) -> None:
        """Makes the output of a layer the input of the next."""
        self._inputs = [
            self._model.session.run(self._states[layer + 1], self._feeds(batch, layer, slots))
            for batch in range(len(self._batches))
        ]


def _options(point: point_encoder.Point) -> modeling.EncoderOptions:
    return modeling.EncoderOptions(use_tensorflow=True, taps=point_encoder.Taps(point))


def _layer_states(tensors: Mapping[str, tf.Tensor], num_layers: int) -> list[tf.Tensor]:
    """Returns what enters each layer and what leaves the last, before any rounding."""
    names = [points.full_name(layer, _ENTRY) for layer in range(num_layers)]
    return [tensors[name] for name in (*names, points.FINAL_POINT)]


def feed_dict(model: inference.Model, batch: Batch) -> dict[tf.Tensor, np.ndarray]:
    """Returns the feeds of a batch; other features than the model's inputs are left out."""
    return {placeholder: batch[name] for name, placeholder in model.inputs.items()}


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
