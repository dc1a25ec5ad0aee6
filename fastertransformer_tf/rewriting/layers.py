"""What is looked for: a post-layer-norm BERT layer, and why something is none."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

# A number above this that is added to a score does not surely hide a key.
HIGHEST_MASK = -1000.0
# A number below this hides a score of any size from a softmax in float32, and is representable as
# the op's mask in half precision: what is added is never less.
LOWEST_MASK = -5e8


def as_added(mask: np.ndarray) -> np.ndarray:
    """Returns what a mask adds to the scores: itself, or of one of conditions what hides a key."""
    if mask.dtype == bool:
        return np.where(mask, np.float32(0), np.float32(LOWEST_MASK))
    return mask


class Mismatch(Exception):
    """A part of a graph is no BERT layer; the message says why, in a few words."""


@dataclasses.dataclass
class Attention:
    """Self-attention, from the layer's input to the product with the output kernel and its bias.

    Attributes:
      softmax: The op of the probabilities, [B,N,S,S].
      states: The layer's input, [B,S,H] or [B*S,H].
      weights: Op input (`attr_q_kernel`, ...) to the weight.
      adders: What is added to the scaled scores, constants of one element left out; or, of type
        bool, what must hold for a score to stay.
      head_shape: The shape [B,S,N,D] that queries are brought to, where a Reshape does it.
      output: The projection with its bias.
      key_axis: The axis of the product of queries and keys that the softmax is over; -1 where
        nothing is transposed in between.
      zeroed: Queries that may see no key get probabilities of 0, not the same for all keys.
    """

    softmax: Any
    states: tf.Tensor
    weights: dict[str, tf.Tensor]
    adders: list[tf.Tensor]
    head_shape: tf.Tensor | None
    output: tf.Tensor
    key_axis: int
    zeroed: bool


@dataclasses.dataclass
class Layer:
    """A BERT layer that was found in a graph.

    Attributes:
      label: What reports call it: `layer_3`.
      softmax: Name of the op of its probabilities.
      states: Its input, [B,S,H] or [B*S,H], in front of all that only changes its shape.
      output: Its output, as the last layer norm gives it.
      weights: Op input to the weight as the graph uses it, all sixteen; kernels of any rank.
      adders: As of `Attention`.
      head_shape: As of `Attention`.
      heads: N.
      size: D.
      inner: I.
      activation: As the op names it.
      epsilon: Of the layer norms.
    """

    label: str
    softmax: str
    states: tf.Tensor
    output: tf.Tensor
    weights: dict[str, tf.Tensor]
    adders: list[tf.Tensor]
    head_shape: tf.Tensor | None
    heads: int
    size: int
    inner: int
    activation: str
    epsilon: float

    @property
    def hidden(self) -> int:
        """H = heads * size."""
        return self.heads * self.size


@dataclasses.dataclass
class LeftAlone:
    """An attention that was found and is no part of a BERT layer that the op computes.

    Attributes:
      label: What reports call it: `layer_3`.
      softmax: Name of the op of its probabilities.
      reason: Why.
    """

    label: str
    softmax: str
    reason: str
