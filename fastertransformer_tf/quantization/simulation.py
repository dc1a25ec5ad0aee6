"""What an int8 encoder computes, in floating point: the rounding of docs/int8.md at every point.

The integers are exact; their products are summed in float32, so that a result may differ from the
op's in the last bits, and where that decides a rounding, by one step of a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import integers, points, scale_list


def fake_quantize(x: tf.Tensor, amax: Any, lowest: int = -integers.BOUND - 1) -> tf.Tensor:
    """Rounds to the integers of a range and returns what these stand for.

    The gradient is straight-through: that of the identity where |x| < amax, 0 elsewhere. The range
    has none. (Source: FasterTransformer 4.0's fake_quantize.)

    Args:
      x: Floating point, any shape; rounded in float32.
      amax: The range above 0: one, or one for each place along the last axis.
      lowest: The lowest integer: -128 of activations, -127 of kernels.

    Returns:
      The shape and type of `x`.
    """
    bound = float(integers.BOUND)

    @tf.custom_gradient
    def rounded(x: tf.Tensor, amax: tf.Tensor) -> Any:
        wide = tf.cast(x, tf.float32)
        integer = tf.clip_by_value(tf.round(wide * (bound / amax)), lowest, bound)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
            return tf.where(tf.abs(wide) < amax, upstream, tf.zeros_like(upstream)), None

        return tf.cast(integer * (amax / bound), x.dtype), gradient

    result: tf.Tensor = rounded(x, tf.cast(amax, tf.float32))
    return result


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
            return fake_quantize(tensor, amax, -integers.BOUND)
        point = points.BY_SCOPE[scope]
        if self._mode not in point.rounded_in:
            return tensor
        return fake_quantize(tensor, self._activations[layer][point.rounded_with])
