"""What an int8 encoder computes, in floating point: the rounding of docs/int8.md at every point.

Products are of integers, which float32 sums exactly up to 2^24, and scaled as the op does it. In
attention, activation and layer norms a result may differ from the op's in the last bits, and where
that decides a rounding, by one step of a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import integers, points, scale_list


def to_integers(x: tf.Tensor, amax: Any, lowest: int = -integers.BOUND - 1) -> tf.Tensor:
    """Rounds to the integers of a range; arguments as for `fake_quantize`. Returns float32."""
    scaled = tf.cast(x, tf.float32) * (float(integers.BOUND) / tf.cast(amax, tf.float32))
    return tf.clip_by_value(tf.round(scaled), lowest, integers.BOUND)


def fake_quantize(x: tf.Tensor, amax: Any, lowest: int = -integers.BOUND - 1) -> tf.Tensor:
    """Rounds to the integers of a range and returns what these stand for.

    Args:
      x: Floating point, any shape; rounded in float32.
      amax: The range above 0: one, or one for each place along the last axis.
      lowest: The lowest integer: -128 of activations, -127 of kernels.

    Returns:
      The shape and type of `x`.
    """
    unit = tf.cast(amax, tf.float32) / float(integers.BOUND)
    return tf.cast(to_integers(x, amax, lowest) * unit, x.dtype)


class SimulatedInt8:
    """A function of a point's name and tensor that rounds it where the op does."""

    def __init__(
        self,
        activations: Any,
        kernels: Sequence[Mapping[str, Any]],
        int8_mode: int,
    ) -> None:
        """Takes the ranges.

        Args:
          activations: float32 [L,16], array or tensor: the range of each slot of each layer.
          kernels: For each layer the op input of a kernel (`attr_q_kernel`, ...) to its range, []
            or [out].
          int8_mode: 1, 2 or 3.

        Raises:
          UserError: Another mode.
        """
        if int8_mode not in points.QUANT_MODES.values():
            raise UserError(f"int8_mode is {int8_mode}, expected 1, 2 or 3")
        self._activations = activations
        self._kernels = kernels
        self._mode = min(int8_mode, 2)

    @classmethod
    def of_scale_lists(cls, lists: Sequence[scale_list.ScaleList], int8_mode: int) -> SimulatedInt8:
        """Makes it of the scale lists of all layers."""
        return cls([s.activations for s in lists], [s.kernels for s in lists], int8_mode)

    def __call__(self, name: str, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the tensor as the op goes on with it."""
        split = points.split_name(name)
        if split is None:
            return tensor
        layer, scope = split
        if scope in points.KERNEL_SCOPES:
            amax = self._kernels[layer][points.KERNEL_SCOPES[scope].op_input]
            return tf.cast(to_integers(tensor, amax, -integers.BOUND), tensor.dtype)
        dense, kind = scope.rsplit("/", 1)
        if f"{dense}/kernel_quantizer" in points.KERNEL_SCOPES:
            if kind == "input_quantizer":
                amax = self._activations[layer][points.BY_SCOPE[scope].rounded_with]
                return tf.cast(to_integers(tensor, amax), tensor.dtype)
            return self._product(layer, dense, tensor)
        point = points.BY_SCOPE[scope]
        if self._mode not in point.rounded_in:
            return tensor
        return fake_quantize(tensor, self._activations[layer][point.rounded_with])

    def _product(self, layer: int, dense: str, sums: tf.Tensor) -> tf.Tensor:
        """What the sums of integers [B,S,out] stand for, rounded where the op rounds them."""
        activations = self._activations[layer]
        point = points.BY_SCOPE[f"{dense}/aftergemm_quantizer"]
        weight = points.KERNEL_SCOPES[f"{dense}/kernel_quantizer"]
        amax = tf.cast(
            activations[points.BY_SCOPE[f"{dense}/input_quantizer"].rounded_with], tf.float32
        )
        ranges = amax * tf.cast(self._kernels[layer][weight.op_input], tf.float32)
        real = tf.cast(sums, tf.float32)
        if self._mode not in point.rounded_in:
            return tf.cast(real * (ranges / float(integers.BOUND**2)), sums.dtype)
        out = tf.cast(activations[point.rounded_with], tf.float32)
        bound = float(integers.BOUND)
        rounded = tf.clip_by_value(tf.round(real * (ranges / (bound * out))), -bound - 1, bound)
        return tf.cast(rounded * (out / bound), sums.dtype)
