"""INT8 layers in float64, written from docs/int8.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import reference

from fastertransformer_tf import spec

# Slots of the scale list that the ops read.
SLOTS = {"input": 0, "context": 9, "projection": 10, "norm": 11, "inner": 13, "product": 14,
         "output": 15}  # fmt: skip
# The kernels in the order of part 2.
KERNELS = [weight.op_input for weight in spec.LAYER_WEIGHTS if weight.is_kernel]


def random_model(
    rng: np.random.Generator, num_layers: int, hidden: int, inner: int
) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray]]:
    """Makes layers with int8 kernels, and a scale list for each, all of different ranges.

    What the ops do not read of a list is NaN.
    """
    layers, lists = [], []
    inputs = rng.uniform(2.5, 3.5, num_layers + 1).astype(np.float32)
    for index, layer in enumerate(reference.random_layers(rng, num_layers, hidden, inner)):
        for name in KERNELS:
            layer[name] = rng.integers(-127, 128, layer[name].shape, dtype=np.int8)
        scales = np.full(80 + 5 * hidden + inner + 11, np.nan, np.float32)
        for slot in SLOTS.values():
            scales[4 * slot] = rng.uniform(2, 4)
        scales[0], scales[60] = inputs[index], inputs[index + 1]
        columns = np.full(5 * hidden + inner, 1.7 / np.sqrt(hidden))
        columns[-hidden:] = 1.7 / np.sqrt(inner)
        scales[80:-11] = columns * rng.uniform(0.7, 1.3, columns.shape)
        layers.append(layer)
        lists.append(scales)
    return layers, lists


@dataclasses.dataclass
class Quantizer:
    """Rounds to integers; remembers in which sequences float32 may round another way.

    Attributes:
      doubtful: bool [B]: a number lay close to the middle of two integers.
      valid: bool [B,S]: the rows that count.
    """

    valid: np.ndarray
    doubtful: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Nothing is doubtful yet."""
        self.doubtful = np.zeros(len(self.valid), bool)

    def __call__(self, x: np.ndarray, a: float) -> np.ndarray:
        """Returns the integers of x [B,S,n] times a / 127."""
        steps = np.clip(np.nan_to_num(x, nan=-np.inf) * 127 / a, -128, 127)
        q = np.rint(steps)
        close = (np.abs(np.abs(steps - q) - 0.5) < 2e-4).any(axis=-1)
        self.doubtful |= (close & self.valid).any(axis=-1)
        return q * (a / 127)


def encoder(
    hidden: np.ndarray,
    layers: Sequence[Mapping[str, np.ndarray]],
    lists: Sequence[np.ndarray],
    num_heads: int,
    mode: int,
    lengths: np.ndarray,
    mask: np.ndarray | None = None,
    activation: str = "gelu_tanh",
) -> tuple[list[np.ndarray], np.ndarray]:
    """Runs the layers as `reference.encoder` does; returns all outputs and the doubtful [B]."""
    x = np.asarray(hidden, np.float64)
    quantize = Quantizer(reference.valid_rows(lengths, x.shape[1]))
    outputs = []
    for index, (layer, scales) in enumerate(zip(layers, lists, strict=True)):
        w = {name: np.asarray(value).astype(np.float64) for name, value in layer.items()}
        a = {name: float(scales[4 * slot]) for name, slot in SLOTS.items()}
        at = 80
        for name in KERNELS:
            columns = w[name].shape[1]
            w[name] *= scales[at : at + columns].astype(np.float64) / 127
            at += columns
        x8 = quantize(x, a["input"])
        q, k, v = (x8 @ w[f"attr_{name}_kernel"] + w[f"attr_{name}_bias"] for name in "qkv")
        context = quantize(reference.attention(q, k, v, num_heads, lengths, mask), a["context"])
        product = context @ w["attr_output_kernel"]
        if mode > 1:
            product = quantize(product, a["projection"])
        y = reference.layer_norm(
            product + w["attr_output_bias"] + (x if mode == 1 else x8),
            w["attr_output_layernorm_beta"], w["attr_output_layernorm_gamma"], 1e-12,
        )  # fmt: skip
        y8 = quantize(y, a["norm"])
        inner = reference.ACTIVATIONS[activation](y8 @ w["inter_kernel"] + w["inter_bias"])
        product = quantize(inner, a["inner"]) @ w["output_kernel"]
        if mode > 1:
            product = quantize(product, a["product"])
        x = reference.layer_norm(
            product + w["output_bias"] + (y if mode == 1 else y8),
            w["output_layernorm_beta"], w["output_layernorm_gamma"], 1e-12,
        )  # fmt: skip
        if mode > 1 and index + 1 < len(layers):
            x = quantize(x, a["output"])
        outputs.append(x)
    return outputs, quantize.doubtful
