"""Layers that bert.modeling calls: those that TensorFlow 2.21 no longer has, and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from fastertransformer_tf.graphs.variables import get_variable
from fastertransformer_tf.models import build_settings

_tf1 = tf.compat.v1


def dropout(input_tensor: tf.Tensor, dropout_prob: float | None) -> tf.Tensor:
    """Sets elements to 0 with a probability and scales the others up; `bert.modeling.dropout`.

    Args:
      input_tensor: Any shape, floating point.
      dropout_prob: The probability; None or 0 returns the input.
    """
    if not dropout_prob:
        return input_tensor
    seeded = build_settings.current_dropout()
    if seeded is None:
        return tf.nn.dropout(input_tensor, rate=dropout_prob)
    numbers, step = seeded
    seed = tf.stack([tf.constant(next(numbers), tf.int64), step])
    return tf.nn.experimental.stateless_dropout(input_tensor, rate=dropout_prob, seed=seed)


def layer_norm(
    inputs: tf.Tensor,
    begin_norm_axis: int = -1,
    begin_params_axis: int = -1,
    scope: str | None = None,
    variable_type: tf.DType | None = None,
) -> tf.Tensor:
    """Layer norm over the last axis with variables `beta` and `gamma`, computed in float32.

    Source: tf.contrib.layers.layer_norm of TensorFlow 1.15, with the epsilon of `build_settings`.

    Args:
      inputs: [..., H].
      begin_norm_axis: -1; the only value that BERT uses.
      begin_params_axis: -1.
      scope: Variable scope; "LayerNorm", made unique, when None.
      variable_type: Of the variables; that of `inputs` when None.

    Returns:
      A tensor of the shape and type of `inputs`.

    Raises:
      UserError: Another axis.
    """
    if (begin_norm_axis, begin_params_axis) != (-1, -1):
        raise ValueError(
            f"layer_norm axes are {begin_norm_axis} and {begin_params_axis}, expected -1 and -1"
        )
    with _tf1.variable_scope(scope, default_name="LayerNorm"):
        shape = [inputs.shape[-1]]
        stored = variable_type or inputs.dtype
        beta = get_variable("beta", shape, stored, _tf1.zeros_initializer())
        gamma = get_variable("gamma", shape, stored, _tf1.ones_initializer())
        x, beta, gamma = (tf.cast(t, tf.float32) for t in (inputs, beta, gamma))
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        epsilon = build_settings.current_layer_norm_epsilon()
        output = tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)
        return tf.cast(output, inputs.dtype)


def dense(
    inputs: tf.Tensor,
    units: int,
    activation: Callable[[tf.Tensor], tf.Tensor] | None = None,
    kernel_initializer: Any = None,
    name: str | None = None,
) -> tf.Tensor:
    """A [.., in] -> [.., units] layer with variables `kernel` and `bias`.

    Source: tf.layers.dense of TensorFlow 1.15, of which Keras 3 left only an error.
    """
    with _tf1.variable_scope(name, default_name="dense"):
        shape = [inputs.shape[-1], units]
        kernel = get_variable("kernel", shape, inputs.dtype, kernel_initializer)
        bias = get_variable("bias", [units], inputs.dtype, _tf1.zeros_initializer())
        output = tf.matmul(inputs, kernel) + bias
        return output if activation is None else activation(output)
