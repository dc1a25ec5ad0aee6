"""The error that ranges cause in what a layer computes, by a graph that simulates int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from fastertransformer_tf.models import modeling, point_encoder
from fastertransformer_tf.programs import inference
from fastertransformer_tf.quantization import collecting, points, scale_list, simulation

_tf1 = tf.compat.v1
Build = Callable[[modeling.EncoderOptions], inference.Model]
Batch = Mapping[str, np.ndarray]

# The point that a layer's input passes first.
_ENTRY = "attention/output/add_residual_input_quantizer"


class LayerErrors:
    """`range_search.LayerErrors` of a graph that simulates int8; a context manager."""

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
        """See `range_search.LayerErrors`."""
        total = 0.0
        for batch, expected in enumerate(self._expected):
            feeds = self._feeds(batch, layer, slots)
            feeds[self._reference] = expected[layer + 1]
            total += float(self._model.session.run(self._errors[layer], feeds))
        return total

    def advance(self, layer: int, slots: np.ndarray) -> None:
        """See `range_search.LayerErrors`."""
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
