"""Numbers to integers and back, as docs/int8.md says. Free of TensorFlow."""

from __future__ import annotations

import numpy as np

BOUND = 127
# The range of a kernel's column that holds zeros alone: its integers are 0 with any.
RANGE_OF_ZEROS = np.float32(1)


def quantize_activation(x: np.ndarray, amax: float) -> np.ndarray:
    """Rounds an activation to int8: clamp(rint(x * (127 / amax)), -128, 127).

    Args:
      x: Any shape, computed with as float32; NaN becomes -128.
      amax: The largest magnitude represented, above 0.

    Returns:
      int8, the shape of `x`.
    """
    return _rounded(np.nan_to_num(x, nan=-np.inf), np.float32(amax), -BOUND - 1)


def quantize_kernel(kernel: np.ndarray, amax: np.ndarray) -> np.ndarray:
    """Rounds a kernel to int8: clamp(rint(w * (127 / amax)), -127, 127).

    Args:
      kernel: [in, out], finite, any float type.
      amax: Ranges above 0, of each column [out] or of the whole kernel [].

    Returns:
      int8 [in, out].
    """
    return _rounded(kernel, np.asarray(amax, np.float32), -BOUND)


def _rounded(x: np.ndarray, amax: np.ndarray | np.float32, lowest: int) -> np.ndarray:
    # Both operations in float32, in this order, as every backend does.
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.asarray(x).astype(np.float32) * (np.float32(BOUND) / amax)
    return np.clip(np.rint(scaled), lowest, BOUND).astype(np.int8)


def dequantize(q: np.ndarray, amax: np.ndarray | float) -> np.ndarray:
    """Returns what integers stand for, q * (amax / 127), float32."""
    return q.astype(np.float32) * (np.asarray(amax, np.float32) / np.float32(BOUND))


def column_ranges(amax: np.ndarray, columns: int) -> np.ndarray:
    """Returns the range of every column, float32 [columns]: of a kernel, above 0.

    Args:
      amax: Of each column [columns], or of the whole kernel []; 0 where all weights are 0.
      columns: The kernel's.
    """
    ranges = np.broadcast_to(np.asarray(amax, np.float32), [columns])
    return np.where(ranges == 0, RANGE_OF_ZEROS, ranges)
