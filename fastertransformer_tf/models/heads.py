"""The heads of google-research BERT's programs, in the type of the model below them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from fastertransformer_tf.graphs.variables import get_variable
from fastertransformer_tf.models import bert, bert_layers

_tf1 = tf.compat.v1


def _class_weights(pooled: tf.Tensor, num_labels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Creates (or gets) the classification head's variables."""
    weights = get_variable(
        "output_weights",
        [num_labels, pooled.shape[-1]],
        pooled.dtype,
        _tf1.truncated_normal_initializer(stddev=0.02),
    )
    return weights, get_variable(
        "output_bias", [num_labels], pooled.dtype, _tf1.zeros_initializer()
    )


def class_logits(pooled: tf.Tensor, num_labels: int) -> tf.Tensor:
    """The classification head for inference: pooled [B,H] to float32 logits [B,C]."""
    return _logits(pooled, *_class_weights(pooled, num_labels))


def _logits(pooled: tf.Tensor, weights: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.matmul(pooled, weights, transpose_b=True) + bias, tf.float32)


def sequence_logits(
    bert_config: Any,
    is_training: bool,
    input_ids: tf.Tensor,
    input_mask: tf.Tensor,
    segment_ids: tf.Tensor,
    num_labels: int,
) -> tf.Tensor:
    """Builds BERT and the head of a whole sequence in `floatx`; its outputs are float32.

    Source: google-research/bert run_classifier.py, create_model; the same variables
    `output_weights` and `output_bias`.

    Args:
      bert_config: A BertConfig.
      is_training: Whether dropout is applied.
      input_ids: int32 [B,S].
      input_mask: int32 [B,S], 1 for real tokens.
      segment_ids: int32 [B,S].
      num_labels: Number of outputs, C.

    Returns:
      [B,C].
    """
    pooled = bert.build(
        bert_config, input_ids, input_mask, segment_ids, is_training=is_training
    ).pooled
    weights, bias = _class_weights(pooled, num_labels)
    with _tf1.variable_scope("loss"):
        if is_training:
            pooled = bert_layers.dropout(pooled, 0.1)
        return _logits(pooled, weights, bias)


def class_outputs(logits: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """What run_classifier.py's model returns of its logits.

    Source: google-research/bert run_classifier.py, create_model.

    Args:
      logits: float32 [B,C].
      labels: int32 [B].

    Returns:
      Float32: the mean `loss` [], `per_example_loss` [B], `logits` and `probabilities` [B,C].
    """
    per_example_loss = -tf.reduce_sum(
        tf.one_hot(labels, logits.shape[-1]) * tf.nn.log_softmax(logits), axis=-1
    )
    return {
        "loss": tf.reduce_mean(per_example_loss),
        "per_example_loss": per_example_loss,
        "logits": logits,
        "probabilities": tf.nn.softmax(logits),
    }


def value_outputs(logits: tf.Tensor, values: tf.Tensor) -> dict[str, tf.Tensor]:
    """The same of a regression, whose loss is the squared error.

    Args:
      logits: float32 [B,1].
      values: What is to be predicted, float32 [B].

    Returns:
      Float32: the mean `loss` [], `per_example_loss` [B] and `logits`.
    """
    per_example_loss = tf.math.squared_difference(logits[:, 0], values)
    return {
        "loss": tf.reduce_mean(per_example_loss),
        "per_example_loss": per_example_loss,
        "logits": logits,
    }


def span(
    config: Any,
    input_ids: tf.Tensor,
    input_mask: tf.Tensor,
    segment_ids: tf.Tensor,
    *,
    is_training: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Builds BERT and the SQuAD head in `floatx`; logits in float32.

    Source: google-research/bert run_squad.py, create_model; the same variables
    `cls/squad/output_weights` and `cls/squad/output_bias`.

    Args:
      config: A BertConfig.
      input_ids: int32 [B,S].
      input_mask: int32 [B,S], 1 for real tokens.
      segment_ids: int32 [B,S].
      is_training: Whether dropout is applied.

    Returns:
      start_logits and end_logits, float32 [B,S].
    """
    hidden = bert.build(
        config, input_ids, input_mask, segment_ids, is_training=is_training
    ).sequence
    weights = get_variable(
        "cls/squad/output_weights",
        [2, hidden.shape[-1]],
        hidden.dtype,
        _tf1.truncated_normal_initializer(stddev=0.02),
    )
    bias = get_variable("cls/squad/output_bias", [2], hidden.dtype, _tf1.zeros_initializer())
    logits = tf.cast(tf.einsum("bsh,ch->cbs", hidden, weights), tf.float32)
    logits += tf.cast(bias, tf.float32)[:, tf.newaxis, tf.newaxis]
    return logits[0], logits[1]
