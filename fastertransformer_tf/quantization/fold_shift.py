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

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import points, ranges

# The points whose centres a shift is made of.
LAYER_INPUT = "attention/self/query/input_quantizer"
MIDDLE = "intermediate/dense/input_quantizer"
KEY = "attention/self/matmul_k_input_quantizer"
VALUE = "attention/self/matmul_v_input_quantizer"
SCOPES = (LAYER_INPUT, MIDDLE, KEY, VALUE)

_EMBEDDINGS = "bert/embeddings/LayerNorm/beta"
_LAST_NORM = "output/LayerNorm/beta"
# What rounding the biases to float32 may leave of a shift's equations; float16 leaves more.
_ROUNDED = 1e-2
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
    moved = _Moved(tensors)
    for layer in range(sizes.layers):
        zeros = np.zeros(sizes.hidden)
        _fold_layer(
            moved,
            layer,
            {scope: centres.get(points.full_name(layer, scope), zeros) for scope in SCOPES},
        )
    return moved.all_tensors()


def _fold_layer(moved: _Moved, layer: int, centres: Mapping[str, np.ndarray]) -> None:
    """Moves the tensors of one layer: its input, keys, values and the output of its first norm.

    Args:
      moved: What is changed.
      layer: Its index.
      centres: The scope of a point to its centre, [H].
    """

    def at(scope: str) -> str:
        return points.full_name(layer, scope)

    z = np.asarray(centres[LAYER_INPUT], np.float64)
    moved.add(points.full_name(layer - 1, _LAST_NORM) if layer else _EMBEDDINGS, -z)
    for scope in _QUERY_KEY_VALUE:
        moved.add(at(f"{scope}/bias"), z @ moved.value(at(f"{scope}/kernel")))
    moved.add(at("attention/output/dense/bias"), z)  # By way of the residual.

    moved.add(at("attention/self/key/bias"), -np.asarray(centres[KEY], np.float64))

    z = np.asarray(centres[VALUE], np.float64)
    moved.add(at("attention/self/value/bias"), -z)
    kernel = moved.value(at("attention/output/dense/kernel"))
    moved.add(at("attention/output/dense/bias"), z @ kernel)

    z = np.asarray(centres[MIDDLE], np.float64)
    moved.add(at("attention/output/LayerNorm/beta"), -z)
    moved.add(at("intermediate/dense/bias"), z @ moved.value(at("intermediate/dense/kernel")))
    moved.add(at("output/dense/bias"), z)


def find_input_shift(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """Finds what `fold_shift` subtracted from the input of a layer.

    With z the input's centre and c the values', the biases of query, value and output grew by
    z Wq, z Wv - c and z + c Wo: two equations for z, solved by least squares.

    Args:
      before: Names within a layer to its kernels and biases, as they were.
      after: The same with the biases that they became; its kernels are not read.

    Returns:
      z, float64 [H]; or None where the biases did not change by a shift alone.
    """

    def kernel(scope: str) -> np.ndarray:
        return np.asarray(before[f"{scope}/kernel"], np.float64)

    def change(scope: str) -> np.ndarray:
        name = f"{scope}/bias"
        return np.asarray(after[name], np.float64) - np.asarray(before[name], np.float64)

    query, _, value = _QUERY_KEY_VALUE
    output = "attention/output/dense"
    value_to_output = kernel(value) @ kernel(output)
    matrix = np.hstack([kernel(query), np.eye(len(value_to_output)) + value_to_output])
    wanted = np.concatenate([change(query), change(output) + change(value) @ kernel(output)])
    z: np.ndarray = np.linalg.lstsq(matrix.T, wanted, rcond=None)[0]
    left = np.linalg.norm(z @ matrix - wanted)
    return z if left <= _ROUNDED * np.linalg.norm(wanted) else None


class _Moved:
    """The variables of a checkpoint, to some of which something is added."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._tensors = tensors
        self._changed: dict[str, np.ndarray] = {}

    def value(self, name: str) -> np.ndarray:
        """Returns a variable as it was, float64.

        Raises:
          UserError: There is none.
        """
        if name not in self._tensors:
            raise UserError(f"the checkpoint has no {name}, expected all weights of google's BERT")
        return np.asarray(self._tensors[name]).astype(np.float64)

    def add(self, name: str, change: np.ndarray) -> None:
        """Adds to a variable, in float64."""
        self._changed[name] = self._changed.get(name, self.value(name)) + change

    def all_tensors(self) -> dict[str, np.ndarray]:
        """Returns all variables in their own types."""
        return dict(self._tensors) | {
            name: new.astype(np.asarray(self._tensors[name]).dtype)
            for name, new in self._changed.items()
        }
