"""The losses of google-research BERT's programs, as graphs with dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow.compat.v1 as tf

from fastertransformer_tf.models import bert_compat


def classifier_loss(
    bert_config: Any, num_labels: int
) -> Callable[[Mapping[str, tf.Tensor]], tf.Tensor]:
    """Cross-entropy of run_classifier.py's model, with dropout.

    Args:
      bert_config: bert-tensorflow's BertConfig.
      num_labels: Classes.

    Returns:
      `build_loss` for `train`; needs the feature label_ids [E].
    """

    def build(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return bert_compat.create_classifier_model(
            bert_config,
            True,
            inputs["input_ids"],
            inputs["input_mask"],
            inputs["segment_ids"],
            inputs["label_ids"],
            num_labels,
            False,
        )[0]

    return build


def squad_loss(bert_config: Any) -> Callable[[Mapping[str, tf.Tensor]], tf.Tensor]:
    """Mean cross-entropy of start and end positions of run_squad.py's model, with dropout.

    A position is one of the real tokens, as when answers are chosen. google's loss lets padding
    take part too; then it would depend on how long the batch happens to be, for shared padding is
    cut off.

    Args:
      bert_config: bert-tensorflow's BertConfig.

    Returns:
      `build_loss` for `train`; needs the features start_positions and end_positions [E].
    """

    def build(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        logits = bert_compat.run_squad().create_model(
            bert_config,
            True,
            inputs["input_ids"],
            inputs["input_mask"],
            inputs["segment_ids"],
            False,
        )
        losses = [
            span_loss(part_logits, inputs["input_mask"], inputs[f"{part}_positions"])
            for part, part_logits in zip(("start", "end"), logits, strict=True)
        ]
        return (losses[0] + losses[1]) / 2.0

    return build


def span_loss(logits: tf.Tensor, input_mask: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of one position in each sequence, over its real tokens.

    Args:
      logits: [B,S] float32.
      input_mask: [B,S], 1 for real tokens.
      positions: [B], each of a real token.

    Returns:
      The mean, [].
    """
    real = tf.not_equal(input_mask, 0)
    logits = tf.where(real, logits, tf.fill(tf.shape(logits), logits.dtype.min))
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positions, logits=logits)
    )
