"""The scale list of a layer, `amaxList`: its layout as docs/int8.md has it. Free of TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.quantization import points

# Part 1: as many places, of four floats each, as the list reserves, and those in use.
_PLACES = 20
NUM_SLOTS = 16
LAST_OUTPUT = 15
_PART_1 = 4 * _PLACES
_PART_3 = 8
_PART_4 = 3
# The range that slot 15 of the last layer holds: nothing is rounded with it.
NO_NEXT_LAYER = 1.0
# Part 3 as (slot in, kernel or slot of the other factor, slot out).
_PRODUCTS: tuple[tuple[int, str | int, int], ...] = (
    (0, "attr_q_kernel", 1),
    (0, "attr_k_kernel", 3),
    (0, "attr_v_kernel", 5),
    (2, 4, 7),
    (8, 6, 9),
    (9, "attr_output_kernel", 10),
    (11, "inter_kernel", 12),
    (13, "output_kernel", 14),
)


def length(hidden: int, inner: int) -> int:
    """Returns how many floats the list of a layer has."""
    return _PART_1 + sum(_columns(hidden, inner).values()) + _PART_3 + _PART_4


def _columns(hidden: int, inner: int) -> dict[str, int]:
    """The output columns of the six kernels, in the order of part 2."""
    return {w.op_input: w.sizes(hidden, inner)[w.channel_axis] for w in points.KERNELS}


@dataclasses.dataclass(frozen=True)
class ScaleList:
    """The ranges of a layer.

    Attributes:
      activations: float32 [16], the range of each slot.
      kernels: Op input (`attr_q_kernel`, ...) to the range of every output column, float32 [out].
    """

    activations: np.ndarray
    kernels: Mapping[str, np.ndarray]

    def to_array(self) -> np.ndarray:
        """Returns the list as it is stored, float32 [80 + 5 H + I + 11].

        Every entry is computed in float64 and rounded once.

        Raises:
          UserError: A range is not above 0 and finite.
        """
        _check(self)
        a = np.asarray(self.activations, np.float64)
        part_1 = np.zeros((_PLACES, 4))
        part_1[:NUM_SLOTS] = np.stack([a, a / 127, a / 127 / 127, 127 / a], axis=1)
        part_2 = [np.asarray(self.kernels[w.op_input], np.float64) for w in points.KERNELS]
        part_3 = [self._output_factor(*product) for product in _PRODUCTS]
        part_4 = [max(a[2], a[4], a[6]), a[8], a[9]]
        return np.concatenate([part_1.ravel(), *part_2, part_3, part_4]).astype(np.float32)

    def _output_factor(self, slot: int, other: str | int, out: int) -> float:
        """An entry of part 3: what turns a product's sum into the int8 of its output."""
        a = np.asarray(self.activations, np.float64)
        factor = a[other] if isinstance(other, int) else float(self.kernels[other][0])
        return a[slot] * factor / (127 * a[out])


def parse(values: np.ndarray, hidden: int, inner: int, name: str = points.SCALE_LIST) -> ScaleList:
    """Reads a stored list: parts 1 and 2, from which all the rest follows.

    Args:
      values: float32 [80 + 5 H + I + 11].
      hidden: H.
      inner: I.
      name: What to call it in a message.

    Raises:
      UserError: It has another length or type, or a range that is not above 0 and finite.
    """
    values = np.asarray(values)
    expected = length(hidden, inner)
    if values.shape != (expected,) or values.dtype != np.float32:
        raise UserError(
            f"{name} is {values.dtype} {list(values.shape)}, expected float32 [{expected}]: "
            f"80 + 5 * {hidden} + {inner} + 11"
        )
    kernels = {}
    begin = _PART_1
    for op_input, columns in _columns(hidden, inner).items():
        kernels[op_input] = values[begin : begin + columns]
        begin += columns
    parsed = ScaleList(values[: 4 * NUM_SLOTS : 4], kernels)
    _check(parsed, name)
    return parsed


def _check(scales: ScaleList, name: str = points.SCALE_LIST) -> None:
    """Refuses ranges that nothing can be rounded with.

    Raises:
      UserError: Naming them all.
    """
    faults = [
        f"slot {slot} is {value:g}"
        for slot, value in enumerate(np.asarray(scales.activations))
        if not usable(value)
    ]
    for op_input, ranges in scales.kernels.items():
        bad = ~usable(ranges)
        if bad.any():
            faults.append(f"{int(bad.sum())} ranges of {op_input}, such as {ranges[bad][0]:g}")
    if faults:
        raise UserError(f"{name} has ranges that are not above 0 and finite: {listed(faults)}")


def usable(amax: np.ndarray | float) -> np.ndarray:
    """Whether ranges are above 0 and finite, and so is everything of part 1, in float32."""
    with np.errstate(all="ignore"):
        a = np.asarray(amax, np.float32)
        return np.isfinite(a) & (a / 127 / 127 > 0) & np.isfinite(np.float32(127) / a)
