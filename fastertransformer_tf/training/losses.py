"""The losses of google-research BERT's programs, and what a student has of its teacher."""

from __future__ import annotations

import tensorflow.compat.v1 as tf

# Of the logits of student and teacher alike, before their softmax.
TEMPERATURE = 3.0


def class_loss(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of a class for each example.

    Args:
      logits: [B,C] float32.
      labels: [B].

    Returns:
      The mean, [].
    """
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    )


def value_loss(outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Mean squared error of a number for each example.

    Args:
      outputs: [B,1] float32.
      values: [B] or [B,1] float32.

    Returns:
      The mean, [].
    """
    return tf.reduce_mean(tf.math.squared_difference(outputs, tf.reshape(values, [-1, 1])))


def span_loss(logits: tf.Tensor, input_mask: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of one position in each sequence, over its real tokens.

    A position is one of the real tokens, as when answers are chosen. google's loss lets padding
    take part too; then it would depend on how long the batch happens to be, for shared padding is
    cut off.

    Args:
      logits: [B,S] float32.
      input_mask: [B,S], 1 for real tokens.
      positions: [B], each of a real token.

    Returns:
      The mean, [].
    """
    return class_loss(_of_real_tokens(logits, input_mask), positions)


def divergence(
    student: tf.Tensor, teacher: tf.Tensor, input_mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Mean Kullback-Leibler divergence of the student's probabilities from the teacher's.

    Both are softmax(logits / 3). Source: FasterTransformer 4.0's QAT with distillation, without the
    1e-9 that it adds to probabilities, for which logarithms of a softmax have no need.

    Args:
      student: Logits, [B,C] or, of tokens, [B,S], float32.
      teacher: The same of the teacher; no gradient flows into it.
      input_mask: [B,S], 1 for real tokens, where the logits are those of tokens.

    Returns:
      The mean over examples of sum p_student * log(p_student / p_teacher), [].
    """
    if input_mask is not None:
        student, teacher = (_of_real_tokens(x, input_mask) for x in (student, teacher))
    log_student, log_teacher = (
        tf.nn.log_softmax(x / TEMPERATURE) for x in (student, tf.stop_gradient(teacher))
    )
    terms = tf.exp(log_student) * (log_student - log_teacher)
    return tf.reduce_mean(tf.reduce_sum(terms, axis=-1))


def hidden_states_error(student: tf.Tensor, teacher: tf.Tensor, input_mask: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of two hidden states, over channels and real tokens.

    Source: TinyBERT (Jiao et al. 2020), for models of the same size.

    Args:
      student: [B,S,H], floating point; the difference is float32.
      teacher: The same of the teacher; no gradient flows into it.
      input_mask: [B,S], 1 for real tokens.

    Returns:
      The mean, [].
    """
    real = tf.not_equal(input_mask, 0)[:, :, tf.newaxis]
    return _mean_square(student, teacher, real)


def attention_error(student: tf.Tensor, teacher: tf.Tensor, input_mask: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of two layers' attention scores, over heads and real tokens.

    Scores are q k^T / sqrt(D), before mask and softmax. Source: TinyBERT, where they
    did better than probabilities.

    Args:
      student: [B,N,S,S], floating point; the difference is float32.
      teacher: The same of the teacher; no gradient flows into it.
      input_mask: [B,S], 1 for real tokens.

    Returns:
      The mean over the pairs whose query and key are real, [].
    """
    real = tf.not_equal(input_mask, 0)
    pairs = tf.logical_and(real[:, tf.newaxis, :, tf.newaxis], real[:, tf.newaxis, tf.newaxis, :])
    return _mean_square(student, teacher, pairs)


def _mean_square(student: tf.Tensor, teacher: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """Mean squared difference where `real`, which broadcasts over the rest."""
    difference = tf.cast(student, tf.float32) - tf.cast(tf.stop_gradient(teacher), tf.float32)
    real = tf.broadcast_to(real, tf.shape(difference))
    # Chosen before it is squared: what padding holds may not be finite.
    squares = tf.square(tf.where(real, difference, tf.zeros_like(difference)))
    return tf.reduce_sum(squares) / tf.reduce_sum(tf.cast(real, tf.float32))


def _of_real_tokens(logits: tf.Tensor, input_mask: tf.Tensor) -> tf.Tensor:
    """Gives all other tokens logits that no softmax sees, [B,S]."""
    real = tf.not_equal(input_mask, 0)
    return tf.where(real, logits, tf.fill(tf.shape(logits), logits.dtype.min))
