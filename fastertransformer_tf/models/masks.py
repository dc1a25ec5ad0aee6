"""Masks as the ops take them."""

from __future__ import annotations

import tensorflow as tf


def lengths_and_mask(
    input_mask: tf.Tensor, dtype: tf.DType, remove_padding: bool, masked: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Turns BERT's input mask into what the op takes, without changing its meaning.

    A mask of ones followed by zeros, as every tokenizer makes it, is said by the lengths alone:
    masked keys are then skipped. Any other mask is passed whole, on top of the lengths. Which of
    the two is decided for each batch when the graph runs.

    A sequence without any real token attends evenly to all S keys in google's graph; so it does
    here, but with remove_padding, where all its rows are padding and come out 0.

    Args:
      input_mask: [B,S], integer or float; 1 for real tokens, 0 for the others.
      dtype: Type of the returned mask.
      remove_padding: As the op is told.
      masked: What stands for 0 in the returned mask: 0, google's, adds -10000 to a score, -1 adds
        -20000 and so on. It matters to a sequence without any real token.

    Returns:
      sequence_length, int32 [B], and attention_mask: `dtype` [B,S,S], or [0] where the lengths
      alone say all.
    """
    with tf.device("/cpu:0"):  # Tiny, and the choice below must not make the host wait for a GPU.
        seq_len = tf.shape(input_mask)[1]
        positions = tf.range(1, seq_len + 1)
        is_real = tf.not_equal(input_mask, tf.zeros([], input_mask.dtype))
        lengths = tf.reduce_max(tf.where(is_real, positions, tf.zeros_like(positions)), axis=1)
        lengths = tf.maximum(lengths, 0)  # The maximum over no element, S = 0, is not 0.
        if not remove_padding:
            lengths = tf.where(tf.equal(lengths, 0), tf.fill(tf.shape(lengths), seq_len), lengths)
        prefix = tf.sequence_mask(lengths, seq_len, input_mask.dtype)

        def whole_mask() -> tf.Tensor:
            keys = tf.cast(input_mask, dtype)
            if masked:
                keys = masked + (1 - masked) * keys
            return tf.tile(keys[:, tf.newaxis, :], [1, seq_len, 1])

        mask = tf.cond(
            tf.reduce_all(tf.equal(input_mask, prefix)),
            lambda: tf.zeros([0], dtype),
            whole_mask,
        )
    return lengths, mask
