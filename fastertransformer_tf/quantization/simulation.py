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


@tf.custom_gradient
def _rounded(steps: tf.Tensor, lowest: tf.Tensor) -> Any:
    """Rounds float32 to integers from `lowest` to 127.

    The gradient is straight-through: that of the identity within the range, 0 elsewhere. (Source:
    FasterTransformer 4.0's fake_quantize.)
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        inside = tf.abs(steps) < float(integers.BOUND)
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None

    return tf.clip_by_value(tf.round(steps), lowest, float(integers.BOUND)), gradient


def to_integers(x: tf.Tensor, amax: Any, lowest: int = -integers.BOUND - 1) -> tf.Tensor:
    """Rounds to the integers of a range; arguments as for `fake_quantize`. Returns float32."""
    steps = tf.cast(x, tf.float32) * (float(integers.BOUND) / _constant(amax))
    result: tf.Tensor = _rounded(steps, tf.constant(lowest, tf.float32))
    return result


def _constant(amax: Any) -> tf.Tensor:
    """A range as float32; it has no gradient."""
    return tf.stop_gradient(tf.cast(amax, tf.float32))


def fake_quantize(x: tf.Tensor, amax: Any, lowest: int = -integers.BOUND - 1) -> tf.Tensor:
    """Rounds to the integers of a range and returns what these stand for.

    The gradient is straight-through: that of the identity where |x| < amax, 0 elsewhere. The range
    has none.

    Args:
      x: Floating point, any shape; rounded in float32.
      amax: The range above 0: one, or one for each place along the last axis.
      lowest: The lowest integer: -128 of activations, -127 of kernels.

    Returns:
      The shape and type of `x`.
    """
    unit = _constant(amax) / float(integers.BOUND)
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
        slot = points.BY_SCOPE[f"{dense}/input_quantizer"].rounded_with
        assert slot is not None
        bound = float(integers.BOUND)
        ranges = _constant(activations[slot]) * _constant(self._kernels[layer][weight.op_input])
        real = tf.cast(sums, tf.float32)
        if self._mode not in point.rounded_in:
            return tf.cast(real * (ranges / (bound * bound)), sums.dtype)
        assert point.rounded_with is not None
        out = _constant(activations[point.rounded_with])
        steps = _rounded(real * (ranges / (bound * out)), tf.constant(-bound - 1))
        return tf.cast(steps * (out / bound), sums.dtype)
