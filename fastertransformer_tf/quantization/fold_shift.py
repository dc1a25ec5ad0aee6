"""Centres the channels of a BERT's activations without changing what it computes.

A symmetric range wastes what a channel's distribution is off zero. Some tensors may be moved by a
constant for each channel, because what follows is linear and can add it again: the outputs of layer
norms (by the biases of the products and of the residual's sum), the values of attention (the
probabilities of a query add up to 1), and the keys (softmax does not see what is added to all
scores of a query). See Wei et al., "Outlier Suppression+" (2023), for the idea.

The last layer norm is left alone, since heads read it. Outputs of inner layers are moved: who
fetches those sees it. Free of TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastertransformer_tf.quantization import points, ranges

# The points whose centres a shift is made of.
LAYER_INPUT = "attention/self/query/input_quantizer"
MIDDLE = "intermediate/dense/input_quantizer"
KEY = "attention/self/matmul_k_input_quantizer"
VALUE = "attention/self/matmul_v_input_quantizer"
SCOPES = (LAYER_INPUT, MIDDLE, KEY, VALUE)

_EMBEDDINGS = "bert/embeddings/LayerNorm/beta"
_QUERY_KEY_VALUE = tuple(f"attention/self/{name}" for name in ("query", "key", "value"))


def shift_points(num_layers: int) -> list[str]:
    """Names the points whose centres `fold_shift` takes."""
    return [points.full_name(layer, scope) for layer in range(num_layers) for scope in SCOPES]


def fold_shift(
    tensors: Mapping[str, np.ndarray], centres: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Moves every tensor of `shift_points` by its centre, in biases and betas alone.

    Args:
      tensors: Variable name to value, of google's checkpoint.
      centres: Point name to the centre of each channel, [H]: its smallest and its largest value
        have opposite signs and one magnitude once it is subtracted. A missing point stays.

    Returns:
      All variables; those that changed are computed in float64 and rounded to their types once.

    Raises:
      UserError: The tensors are no BERT.
    """
    sizes = ranges.model_sizes(tensors)
    moved: dict[str, np.ndarray] = {}

    def value(name: str) -> np.ndarray:
        return np.asarray(tensors[name]).astype(np.float64)

    def add(name: str, change: np.ndarray) -> None:
        moved[name] = moved.get(name, value(name)) + change

    for layer in range(sizes.layers):

        def at(scope: str, layer: int = layer) -> str:
            return points.full_name(layer, scope)

        def centre(scope: str, layer: int = layer) -> np.ndarray:
            found = centres.get(points.full_name(layer, scope))
            return np.zeros(sizes.hidden) if found is None else np.asarray(found, np.float64)

        z = centre(LAYER_INPUT)
        before = points.full_name(layer - 1, "output/LayerNorm/beta") if layer else _EMBEDDINGS
        add(before, -z)
        for scope in _QUERY_KEY_VALUE:
            add(at(f"{scope}/bias"), z @ value(at(f"{scope}/kernel")))
        add(at("attention/output/dense/bias"), z)

        add(at("attention/self/key/bias"), -centre(KEY))

        z = centre(VALUE)
        add(at("attention/self/value/bias"), -z)
        add(at("attention/output/dense/bias"), z @ value(at("attention/output/dense/kernel")))

        z = centre(MIDDLE)
        add(at("attention/output/LayerNorm/beta"), -z)
        add(at("intermediate/dense/bias"), z @ value(at("intermediate/dense/kernel")))
        add(at("output/dense/bias"), z)
    return dict(tensors) | {
        name: new.astype(np.asarray(tensors[name]).dtype) for name, new in moved.items()
    }
