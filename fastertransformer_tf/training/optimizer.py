"""google-research BERT's optimizer: Adam with weight decay, warm-up, decay, clipped gradients."""

from __future__ import annotations

import re

import tensorflow.compat.v1 as tf

from fastertransformer_tf.training.options import TrainingOptions

_BETA_1, _BETA_2 = 0.9, 0.999
_EPSILON = 1e-6
_WEIGHT_DECAY = 0.01
_LARGEST_NORM = 1.0
# Weights that do not decay.
_KEPT = re.compile(r"LayerNorm|layer_norm|bias")


def train_step(loss: tf.Tensor, step: tf.Variable, options: TrainingOptions) -> tf.Operation:
    """Builds the operation that makes one step with all trainable variables.

    Source: google-research/bert optimization.py, create_optimizer and AdamWeightDecayOptimizer. As
    there Adam's moments are not corrected for their start at 0, weights decay apart from the
    gradient, and the variables beside a weight are called `adam_m` and `adam_v`.

    Args:
      loss: Float32 [].
      step: int64 [], counted up by the operation; whoever reads it in the same run reads what it
        was before.
      options: Steps and learning rate.
    """
    weights = tf.trainable_variables()
    gradients, _ = tf.clip_by_global_norm(tf.gradients(loss, weights), _LARGEST_NORM)
    learning_rate = _learning_rate(step, options)
    updates = [
        _update(weight, gradient, learning_rate)
        for weight, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    ]
    return tf.group(*updates, step.assign(step + 1))


def _learning_rate(step: tf.Variable, options: TrainingOptions) -> tf.Tensor:
    """The learning rate of a step, [], which `TrainingOptions.learning_rate_of` tells too."""
    rate = tf.train.polynomial_decay(
        tf.constant(options.learning_rate, tf.float32), step, options.num_train_steps, 0.0
    )
    if not options.num_warmup_steps:
        return rate
    rising = options.learning_rate * (
        tf.cast(step, tf.float32) / tf.constant(options.num_warmup_steps, tf.float32)
    )
    return tf.where(step < options.num_warmup_steps, rising, rate)


def _update(weight: tf.Variable, gradient: tf.Tensor, learning_rate: tf.Tensor) -> tf.Operation:
    """Assigns a weight and its moments their new values."""
    name = weight.op.name
    m, v = (
        tf.get_variable(
            f"{name}/adam_{moment}",
            weight.shape.as_list(),
            tf.float32,
            tf.zeros_initializer(),
            trainable=False,
        )
        for moment in "mv"
    )
    gradient = tf.convert_to_tensor(gradient)  # Of an embedding: only of the rows that occurred.
    next_m = _BETA_1 * m + (1.0 - _BETA_1) * gradient
    next_v = _BETA_2 * v + (1.0 - _BETA_2) * tf.square(gradient)
    update = next_m / (tf.sqrt(next_v) + _EPSILON)
    if not _KEPT.search(name):
        update += _WEIGHT_DECAY * weight
    return tf.group(
        weight.assign(weight - learning_rate * update), m.assign(next_m), v.assign(next_v)
    )
