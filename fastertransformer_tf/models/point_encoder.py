"""The encoder of BERT in TensorFlow, with a name for every tensor that a quantizer may sit on.

    taps = Taps(point=lambda name, tensor: ...)
    with modeling.encoder_options(EncoderOptions(use_tensorflow=True, taps=taps)):
        heads.span(config, input_ids, input_mask, segment_ids)

Each tensor of `quantization.points` passes through `taps.point`, which calibration uses to look at
it and a simulation or training to round it. With the identity the result is that of bert.modeling's
transformer_model, up to the order of sums, and the variables have the same names.

With another `compute_type` than the variables' the precision is mixed: products, activations and
the residual are of that type, and softmax, layer norms and rounding to int8 still compute in
float32. Kernels pass their points as they are stored, so that they are rounded to the integers that
a checkpoint will have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from fastertransformer_tf.graphs.variables import get_variable
from fastertransformer_tf.models import bert_layers
from fastertransformer_tf.quantization import points

_tf1 = tf.compat.v1
# Takes a point's full name (`bert/encoder/layer_0/...`, whatever scope the model is in) and tensor,
# and returns the tensor to go on with, of the same shape and type.
Point = Callable[[str, tf.Tensor], tf.Tensor]


def identity(name: str, tensor: tf.Tensor) -> tf.Tensor:
    """The point function that changes nothing."""
    del name
    return tensor


@dataclasses.dataclass(eq=False)
class Taps:
    """What the encoder does at its points, and what it lets be seen.

    Attributes:
      point: The function that every named tensor passes through: activations as [B,S,channels],
        q k^T before its scaling and probabilities as [B,N,S,S], kernels as [in,out].
      hidden_states: Filled when the encoder is built: L + 1 tensors [B,S,H], the embeddings and
        each layer's output, as the residual of the next layer reads it. The last is of the type
        of the variables, all others of the type that is computed in.
      attention_scores: Filled likewise: L tensors [B,N,S,S], q k^T / sqrt(D) before the mask.
    """

    point: Point = identity
    hidden_states: list[tf.Tensor] = dataclasses.field(default_factory=list)
    attention_scores: list[tf.Tensor] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """What all layers share; the methods build one, in the current variable scope `layer_<i>`."""

    taps: Taps
    heads: int
    activation: Callable[[tf.Tensor], tf.Tensor]
    hidden_dropout: float
    attention_dropout: float
    initializer_range: float
    stored: tf.DType

    def dense(self, x: tf.Tensor, units: int, scope: str, index: int) -> tf.Tensor:
        """A product [B,S,in] -> [B,S,units] with its three points and its bias."""

        def point(kind: str, tensor: tf.Tensor) -> tf.Tensor:
            return self.taps.point(points.full_name(index, f"{scope}/{kind}_quantizer"), tensor)

        width = x.shape[-1]
        initializer = _tf1.truncated_normal_initializer(stddev=self.initializer_range)
        with _tf1.variable_scope(scope):
            kernel = get_variable("kernel", [width, units], self.stored, initializer)
            bias = get_variable("bias", [units], self.stored, _tf1.zeros_initializer())
        rows = tf.reshape(point("input", x), [-1, width])
        columns = tf.cast(point("kernel", tf.convert_to_tensor(kernel)), x.dtype)
        shape = tf.concat([tf.shape(x)[:-1], [units]], axis=0)
        product = point("aftergemm", tf.reshape(tf.matmul(rows, columns), shape))
        return product + tf.cast(bias, x.dtype)

    def attention(self, x: tf.Tensor, adder: tf.Tensor | None, index: int) -> tf.Tensor:
        """The context [B,S,H] of self-attention over `x`, [B,S,H]."""

        def point(letter: str, tensor: tf.Tensor) -> tf.Tensor:
            scope = f"attention/self/{letter}_input_quantizer"
            return self.taps.point(points.full_name(index, scope), tensor)

        hidden = x.shape[-1]
        size = hidden // self.heads
        batch, length = tf.shape(x)[0], tf.shape(x)[1]
        q, k, v = (
            tf.reshape(
                point(f"matmul_{name[0]}", self.dense(x, hidden, f"attention/self/{name}", index)),
                [batch, length, self.heads, size],
            )
            for name in ("query", "key", "value")
        )
        scores = point("softmax", tf.einsum("bqnd,bknd->bnqk", q, k)) / math.sqrt(size)
        self.taps.attention_scores.append(scores)
        if adder is not None:
            scores += adder
        probabilities = tf.cast(tf.nn.softmax(tf.cast(scores, self.stored)), x.dtype)
        probabilities = bert_layers.dropout(probabilities, self.attention_dropout)
        context = tf.einsum("bnqk,bknd->bqnd", point("matmul_a", probabilities), v)
        return tf.reshape(context, [batch, length, hidden])

    def add_and_norm(self, x: tf.Tensor, residual: tf.Tensor, scope: str, index: int) -> tf.Tensor:
        """Dropout, the residual's sum and layer norm; `residual` has passed its point."""
        name = points.full_name(index, f"{scope}/add_local_input_quantizer")
        x = self.taps.point(name, bert_layers.dropout(x, self.hidden_dropout))
        with _tf1.variable_scope(scope):
            return bert_layers.layer_norm(x + residual, variable_type=self.stored)

    def residual(self, x: tf.Tensor, scope: str, index: int) -> tf.Tensor:
        """What is added to a branch's result."""
        return self.taps.point(points.full_name(index, f"{scope}/add_residual_input_quantizer"), x)

    def build(self, x: tf.Tensor, adder: tf.Tensor | None, inner: int, index: int) -> tf.Tensor:
        """The whole layer, [B,S,H] -> [B,S,H]."""
        hidden = x.shape[-1]
        residual = self.residual(x, "attention/output", index)
        self.taps.hidden_states.append(residual)
        context = self.attention(x, adder, index)
        projected = self.dense(context, hidden, "attention/output/dense", index)
        y = self.add_and_norm(projected, residual, "attention/output", index)
        inside = self.activation(self.dense(y, inner, "intermediate/dense", index))
        output = self.dense(inside, hidden, "output/dense", index)
        return self.add_and_norm(output, self.residual(y, "output", index), "output", index)


def transformer_model(
    input_tensor: tf.Tensor,
    attention_mask: tf.Tensor | None = None,
    hidden_size: int = 768,
    num_hidden_layers: int = 12,
    num_attention_heads: int = 12,
    intermediate_size: int = 3072,
    intermediate_act_fn: Callable[[tf.Tensor], tf.Tensor] | None = None,
    hidden_dropout_prob: float = 0.1,
    attention_probs_dropout_prob: float = 0.1,
    initializer_range: float = 0.02,
    do_return_all_layers: bool = False,
    *,
    taps: Taps,
    compute_type: tf.DType | None = None,
) -> Any:
    """`bert.modeling.transformer_model` with points: the same arguments and variables.

    Args:
      input_tensor: [B,S,H] float32, half or bfloat16.
      attention_mask: [B,S,S], 1 may attend, 0 may not, any type.
      hidden_size: H.
      num_hidden_layers: L.
      num_attention_heads: N; H is a multiple of it.
      intermediate_size: I.
      intermediate_act_fn: A function; None for the identity, as google's.
      hidden_dropout_prob: Of the branches, before the residual is added.
      attention_probs_dropout_prob: Of the probabilities.
      initializer_range: Standard deviation of initial kernels.
      do_return_all_layers: Return every layer's output.
      taps: What is done at the points.
      compute_type: Of products and activations, but for the last layer's output; that of
        `input_tensor`, which is that of the variables, when None.

    Returns:
      [B,S,H], or a list of L such tensors.

    Raises:
      ValueError: H is not a multiple of N, or not that of `input_tensor`.
    """
    if hidden_size % num_attention_heads or input_tensor.shape[-1] != hidden_size:
        raise ValueError(
            f"hidden_size is {hidden_size}, expected {input_tensor.shape[-1]} and a multiple of "
            f"num_attention_heads, {num_attention_heads}"
        )
    layer = _Layer(
        taps,
        num_attention_heads,
        intermediate_act_fn or tf.identity,
        hidden_dropout_prob,
        attention_probs_dropout_prob,
        initializer_range,
        input_tensor.dtype,
    )
    x = tf.cast(input_tensor, compute_type or input_tensor.dtype)
    adder = None
    if attention_mask is not None:
        mask = tf.cast(attention_mask, x.dtype)
        adder = (1.0 - mask[:, tf.newaxis]) * -10000.0
    first = len(taps.hidden_states)
    for index in range(num_hidden_layers):
        with _tf1.variable_scope(f"layer_{index}"):
            x = layer.build(x, adder, intermediate_size, index)
    last = taps.point(points.FINAL_POINT, x)
    taps.hidden_states.append(tf.cast(last, input_tensor.dtype))
    if do_return_all_layers:
        return taps.hidden_states[first + 1 :]
    return taps.hidden_states[-1]
