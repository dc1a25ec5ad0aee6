"""int8 weights for programs that run an encoder alone, and what int8 computes in TensorFlow.

A layer's weights are keyed by the checkpoint's names, and its scale list by `amaxList`. B batch, S
padded length, H hidden size.
"""

from __future__ import annotations

import numpy as np
import tensorflow.compat.v1 as tf

from fastertransformer_tf import spec
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.models import encoder_graphs, encoder_weights, point_encoder
from fastertransformer_tf.quantization import (
    calibrated,
    collecting,
    integers,
    points,
    scale_list,
    simulation,
)
from fastertransformer_tf.spec import EncoderSizes


def quantize(
    weights: encoder_weights.Weights, sizes: EncoderSizes, hidden: np.ndarray, lengths: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """Quantizes float weights with the ranges, largest magnitudes, that one batch shows.

    Args:
      weights: Arrays, as `encoder_weights.random_weights` makes them.
      sizes: Of the encoder.
      hidden: The batch, float32 [B,S,H].
      lengths: int32 [B], at least one of them above 0.

    Returns:
      The layers with int8 kernels and `amaxList`; the other arrays are those of `weights`.
    """
    slots = _slots_of_batch(weights, sizes, hidden, lengths)
    quantized = []
    for layer, activations in zip(weights, slots, strict=True):
        changed, kernels = dict(layer), {}
        for weight in points.KERNELS:
            kernel = layer[weight.google]
            amax = integers.column_ranges(np.abs(kernel).max(axis=0), kernel.shape[1])
            kernels[weight.op_input] = amax
            changed[weight.google] = integers.quantize_kernel(kernel, amax)
        changed[points.SCALE_LIST] = scale_list.ScaleList(activations, kernels).to_array()
        quantized.append(changed)
    return quantized


def _slots_of_batch(
    weights: encoder_weights.Weights, sizes: EncoderSizes, hidden: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """The largest magnitudes of a batch, in the slots of the scale lists, float32 [L,16]."""
    recorder = collecting.Recorder()
    with tf.Graph().as_default():
        arrays = encoder_graphs.HeldArrays(tf.float32)
        x = tf.placeholder(tf.float32, hidden.shape)
        tokens = tf.placeholder(tf.int32, lengths.shape)
        encoder_graphs.tensorflow_encoder(
            x, tokens, sizes, arrays.hold_weights(weights), point_encoder.Taps(recorder)
        )
        is_real = tf.sequence_mask(tokens, hidden.shape[1])
        largest = {}
        for name, tensor in recorder.tensors.items():
            scope = (points.split_name(name) or (0, ""))[1]
            if scope not in points.KERNEL_SCOPES:
                values = collecting.real_values(tensor, is_real, scope)
                largest[name] = tf.reduce_max(tf.abs(values))
        with tf.Session(config=sessions.session_config()) as session:
            arrays.load(session)
            amax = session.run(largest, {x: hidden, tokens: lengths})
    return calibrated.activation_slots(amax, sizes.layers)


def dequantize(weights: encoder_weights.Weights, sizes: EncoderSizes) -> encoder_weights.Weights:
    """Returns what int8 weights stand for, as float32 arrays without scale lists."""
    layers = []
    for layer, scales in zip(weights, _scale_lists(weights, sizes), strict=True):
        floats = {weight.google: layer[weight.google] for weight in spec.LAYER_WEIGHTS}
        for weight in points.KERNELS:
            ranges = scales.kernels[weight.op_input]
            floats[weight.google] = integers.dequantize(layer[weight.google], ranges)
        layers.append(floats)
    return layers


def _scale_lists(
    weights: encoder_weights.Weights, sizes: EncoderSizes
) -> list[scale_list.ScaleList]:
    return [
        scale_list.parse(np.asarray(layer[points.SCALE_LIST]), sizes.hidden, sizes.inner)
        for layer in weights
    ]


def simulated_output(
    weights: encoder_weights.Weights,
    sizes: EncoderSizes,
    int8_mode: int,
    hidden: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """Computes in TensorFlow what the op is to compute with int8 weights (docs/int8.md).

    All that is not int8 is float32, as half precision would round what integers stand for.

    Args:
      weights: As `quantize` returns them.
      sizes: Of the encoder.
      int8_mode: 1, 2 or 3.
      hidden: float32 [B,S,H].
      lengths: int32 [B].

    Returns:
      Hidden states, float32 [B,S,H]; rows past a length hold anything.
    """
    lists = _scale_lists(weights, sizes)
    taps = point_encoder.Taps(simulation.SimulatedInt8.of_scale_lists(lists, int8_mode))
    with tf.Graph().as_default():
        arrays = encoder_graphs.HeldArrays(tf.float32)
        held = arrays.hold_weights(dequantize(weights, sizes))
        x = tf.placeholder(tf.float32, hidden.shape)
        tokens = tf.placeholder(tf.int32, lengths.shape)
        output = encoder_graphs.tensorflow_encoder(x, tokens, sizes, held, taps)
        with tf.Session(config=sessions.session_config()) as session:
            arrays.load(session)
            return session.run(output, {x: hidden, tokens: lengths})
