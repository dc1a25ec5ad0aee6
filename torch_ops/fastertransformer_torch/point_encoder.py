"""Hugging Face's BERT encoder, layer by layer, with a name for every tensor that int8 may round.

The tensors of `quantization.points`, as calibration looks at them; what it computes is what
transformers' eager encoder computes, up to the order of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fastertransformer_tf.quantization import points

# Takes the scopes below `bert/encoder/layer_<i>/` of the points that a tensor is at, and the
# tensor: [B,S,channels], or of attention [B,N,S,S].
Point = Callable[[Sequence[str], torch.Tensor], None]

_SELF = "attention/self"


def run_layer(
    layer: Any, hidden: torch.Tensor, is_real: torch.Tensor, point: Point
) -> torch.Tensor:
    """Computes a layer.

    Args:
      layer: transformers' BertLayer.
      hidden: [B,S,H].
      is_real: bool [B,S]: the keys that are seen.
      point: Sees the tensors at the points of activations.

    Returns:
      [B,S,H].
    """
    attention = layer.attention.self
    size = attention.attention_head_size

    def dense(x: torch.Tensor, module: nn.Linear, scope: str) -> torch.Tensor:
        product = nn.functional.linear(x, module.weight)
        point([f"{scope}/aftergemm_quantizer"], product)
        return product + module.bias

    names = ("query", "key", "value")
    point(
        [
            *(f"{_SELF}/{name}/input_quantizer" for name in names),
            "attention/output/add_residual_input_quantizer",
        ],
        hidden,
    )
    heads = []
    for name in names:
        x = dense(hidden, getattr(attention, name), f"{_SELF}/{name}")
        point([f"{_SELF}/matmul_{name[0]}_input_quantizer"], x)
        heads.append(x.unflatten(-1, (-1, size)).transpose(1, 2))
    query, key, value = heads
    scores = query @ key.transpose(2, 3)
    point([f"{_SELF}/softmax_input_quantizer"], scores)
    scores = scores / math.sqrt(size)
    scores = scores.masked_fill(~is_real[:, None, None, :], torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(dim=-1)
    point([f"{_SELF}/matmul_a_input_quantizer"], probabilities)
    context = (probabilities @ value).transpose(1, 2).flatten(2)

    output = layer.attention.output
    point(["attention/output/dense/input_quantizer"], context)
    projected = dense(context, output.dense, "attention/output/dense")
    point(["attention/output/add_local_input_quantizer"], projected)
    middle = output.LayerNorm(projected + hidden)

    point(["intermediate/dense/input_quantizer", "output/add_residual_input_quantizer"], middle)
    inner = dense(middle, layer.intermediate.dense, "intermediate/dense")
    inner = layer.intermediate.intermediate_act_fn(inner)
    point(["output/dense/input_quantizer"], inner)
    projected = dense(inner, layer.output.dense, "output/dense")
    point(["output/add_local_input_quantizer"], projected)
    return layer.output.LayerNorm(projected + middle)


def real_values(tensor: torch.Tensor, is_real: torch.Tensor, scope: str) -> torch.Tensor:
    """Returns, in one dimension, the values of a point's tensor that belong to real tokens."""
    if scope not in points.OVER_KEYS:
        return tensor[is_real].flatten()
    pairs = is_real[:, :, None] & is_real[:, None, :]
    return tensor.permute(0, 2, 3, 1)[pairs].flatten()
