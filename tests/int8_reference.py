"""A NumPy encoder with int8 tensors as docs/int8.md tells: products in int64, the rest float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import reference

from fastertransformer_tf.quantization import integers, scale_list


def _product(q: np.ndarray, amax: float, kernel: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """The product of an int8 activation with a float kernel, rounded by column; float64."""
    w = integers.quantize_kernel(kernel, ranges)
    sums = q.astype(np.int64) @ w.astype(np.int64)
    return sums * (float(amax) * ranges.astype(np.float64) / 127**2)


def _value(q: np.ndarray, amax: float) -> np.ndarray:
    return q.astype(np.float64) * (float(amax) / 127)


def encoder(
    hidden: np.ndarray,
    layers: Sequence[Mapping[str, np.ndarray]],
    scales: Sequence[scale_list.ScaleList],
    num_heads: int,
    mode: int,
    *,
    mask: np.ndarray,
    activation: str = "gelu_tanh",
) -> list[np.ndarray]:
    """Runs a stack of layers; returns each layer's output as docs/int8.md says it is shown.

    Args:
        hidden: [B,S,H].
        layers: Float weights, keyed by op input.
        scales: Of each layer.
        num_heads: N.
        mode: 1 or 2.
        mask: [B,S,S].
        activation: Of the intermediate layer.
    """
    x = np.asarray(hidden, np.float64)
    outputs = []
    for index, (w, s) in enumerate(zip(layers, scales, strict=True)):
        a, k = s.activations, s.kernels
        x8 = integers.quantize_activation(x, a[0])
        q, key, v = (
            _product(x8, a[0], w[f"attr_{n}_kernel"], k[f"attr_{n}_kernel"]) + w[f"attr_{n}_bias"]
            for n in "qkv"
        )
        context = reference.attention(q, key, v, num_heads, mask=mask)
        context8 = integers.quantize_activation(context, a[9])
        y = _product(context8, a[9], w["attr_output_kernel"], k["attr_output_kernel"])
        if mode == 2:
            y = _value(integers.quantize_activation(y, a[10]), a[10])
        y = reference.layer_norm(
            y + w["attr_output_bias"] + (_value(x8, a[0]) if mode == 2 else x),
            w["attr_output_layernorm_beta"],
            w["attr_output_layernorm_gamma"],
            1e-12,
        )
        y8 = integers.quantize_activation(y, a[11])
        inner = _product(y8, a[11], w["inter_kernel"], k["inter_kernel"]) + w["inter_bias"]
        h8 = integers.quantize_activation(reference.ACTIVATIONS[activation](inner), a[13])
        output = _product(h8, a[13], w["output_kernel"], k["output_kernel"])
        if mode == 2:
            output = _value(integers.quantize_activation(output, a[14]), a[14])
        x = reference.layer_norm(
            output + w["output_bias"] + (_value(y8, a[11]) if mode == 2 else y),
            w["output_layernorm_beta"],
            w["output_layernorm_gamma"],
            1e-12,
        )
        if mode == 2 and index + 1 < len(layers):
            x = _value(integers.quantize_activation(x, a[15]), a[15])
        outputs.append(x)
    return outputs
