"""Float64 NumPy references, written from the definition of BERT: slow, short, plain.

Sources: Devlin et al., "BERT" (2018), section 3; Vaswani et al., "Attention Is All You Need"
(2017), section 3; google-research/bert `modeling.py`, `transformer_model` (mask term, GELU form,
order of residual and layer norm). `test_reference.py` checks this file against that graph.

Shape letters: B batch, S padded length, N heads, D head size, H = N * D, I inner size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import special

from fastertransformer_tf import spec

# The 16 weights of a layer, in the order of BertEncoder's inputs, and their shapes.
WEIGHT_SHAPES = {weight.op_input: weight.shape for weight in spec.LAYER_WEIGHTS}

Layer = Mapping[str, np.ndarray]


def random_layers(
    rng: np.random.Generator, num_layers: int, hidden_size: int, inner_size: int | None = None
) -> list[dict[str, np.ndarray]]:
    """Makes `spec.random_layers`; I is 4 * H when None."""
    return spec.random_layers(rng, num_layers, hidden_size, inner_size or 4 * hidden_size)


def layer_norm(x: np.ndarray, beta: np.ndarray, gamma: np.ndarray, epsilon: float) -> np.ndarray:
    """Normalises the last axis (Ba et al., 2016): (x - mean) / sqrt(var + epsilon)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * gamma + beta


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2.0))),
    "relu": lambda x: np.maximum(x, 0.0),
}


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    num_heads: int,
    lengths: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Multi-head attention of [B,S,H] queries, keys and values.

    Args:
        q: Queries, [B,S,H].
        k: Keys, [B,S,H].
        v: Values, [B,S,H].
        num_heads: N.
        lengths: [B]; keys at and beyond the length take no part at all. No key at all: output 0.
        mask: [B,S,S]; (1 - mask) * -10000 is added to the scaled scores.

    Returns:
        [B,S,H], the heads side by side.
    """
    batch, seq_len, hidden = q.shape
    size = hidden // num_heads
    out = np.zeros_like(q)
    for b in range(batch):
        keys = seq_len if lengths is None else int(lengths[b])
        if keys == 0:
            continue
        for n in range(num_heads):
            head = slice(n * size, (n + 1) * size)
            scores = q[b, :, head] @ k[b, :keys, head].T / np.sqrt(size)
            if mask is not None:
                scores = scores + (1.0 - mask[b, :, :keys]) * -10000.0
            out[b, :, head] = softmax(scores) @ v[b, :keys, head]
    return out


def encoder(
    hidden: np.ndarray,
    layers: Sequence[Layer],
    num_heads: int,
    *,
    lengths: np.ndarray | Sequence[int] | None = None,
    mask: np.ndarray | None = None,
    activation: str = "gelu_tanh",
    epsilon: float = 1e-12,
) -> list[np.ndarray]:
    """Runs a stack of post-layer-norm BERT layers in float64.

    Args:
        hidden: [B,S,H], any float type. Rows at and beyond a length may hold NaN: they only reach
            the same rows of the output.
        layers: Weights of each layer, keyed as `WEIGHT_SHAPES`, any float type.
        num_heads: N.
        lengths: [B], the valid keys of each sequence; all S when None.
        mask: [B,S,S] or [B,1,S,S], 1 may attend, 0 may not, on top of the lengths.
        activation: A key of `ACTIVATIONS`.
        epsilon: Added to the variance in both layer norms.

    Returns:
        The [B,S,H] float64 output of every layer, first to last. Padding rows are computed like
        any other query row; see `zero_padding`.
    """
    x = np.asarray(hidden).astype(np.float64)
    lengths = None if lengths is None else np.asarray(lengths)
    if mask is not None:
        mask = np.asarray(mask).astype(np.float64).reshape(x.shape[0], x.shape[1], x.shape[1])
    outputs = []
    for layer in layers:
        w = {name: np.asarray(value).astype(np.float64) for name, value in layer.items()}
        q = x @ w["attr_q_kernel"] + w["attr_q_bias"]
        k = x @ w["attr_k_kernel"] + w["attr_k_bias"]
        v = x @ w["attr_v_kernel"] + w["attr_v_bias"]
        context = attention(q, k, v, num_heads, lengths, mask)
        projected = context @ w["attr_output_kernel"] + w["attr_output_bias"]
        y = layer_norm(
            projected + x,
            w["attr_output_layernorm_beta"],
            w["attr_output_layernorm_gamma"],
            epsilon,
        )
        inner = ACTIVATIONS[activation](y @ w["inter_kernel"] + w["inter_bias"])
        x = layer_norm(
            inner @ w["output_kernel"] + w["output_bias"] + y,
            w["output_layernorm_beta"],
            w["output_layernorm_gamma"],
            epsilon,
        )
        outputs.append(x)
    return outputs


def valid_rows(lengths: np.ndarray | Sequence[int], seq_len: int) -> np.ndarray:
    """Returns bool [B,S]: True where a row belongs to its sequence."""
    return np.arange(seq_len)[None, :] < np.asarray(lengths)[:, None]


def zero_padding(output: np.ndarray, lengths: np.ndarray | Sequence[int]) -> np.ndarray:
    """Returns `output` [B,S,H] with the rows past each length set to 0, as remove_padding gives."""
    return np.where(valid_rows(lengths, output.shape[1])[..., None], output, 0.0)
