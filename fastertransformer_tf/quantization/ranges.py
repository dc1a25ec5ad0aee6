"""Reads the ranges that calibration or training left in a checkpoint. Free of TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.quantization import integers, points, scale_list


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """What the shapes of a checkpoint's kernels say.

    Attributes:
      layers: L.
      hidden: H.
      inner: I.
    """

    layers: int
    hidden: int
    inner: int


def model_sizes(tensors: Mapping[str, np.ndarray]) -> ModelSizes:
    """Finds the sizes of a checkpoint, and that it has all kernels in the shapes that they imply.

    Args:
      tensors: Variable name to value.

    Raises:
      UserError: It has no encoder; or kernels are missing or of another shape, all by name.
    """
    numbers = [split[0] for name in tensors if (split := points.split_name(name))]
    first = tensors.get(points.full_name(0, "intermediate/dense/kernel"))
    if first is None or np.ndim(first) != 2:
        some = ", ".join(sorted(tensors)[:3])
        raise UserError(
            f"the checkpoint has no kernel {points.full_name(0, 'intermediate/dense/kernel')} "
            f"[H,I], expected one of google's BERT; it has such as {some}"
        )
    sizes = ModelSizes(max(numbers) + 1, *first.shape)
    faults = []
    for layer in range(sizes.layers):
        for weight in points.KERNELS:
            name = points.full_name(layer, weight.google)
            expected = list(weight.sizes(sizes.hidden, sizes.inner))
            if name not in tensors:
                faults.append(f"{name} {expected} is missing")
            elif list(tensors[name].shape) != expected:
                faults.append(f"{name} has shape {list(tensors[name].shape)}, expected {expected}")
    if faults:
        raise UserError(f"the checkpoint does not fit an encoder: {listed(faults)}")
    return sizes


def scale_lists(tensors: Mapping[str, np.ndarray]) -> list[scale_list.ScaleList]:
    """Makes the scale list of every layer from the quantizer variables.

    Args:
      tensors: Variable name to value: kernels and quantizer variables, of any float type.

    Returns:
      L scale lists. The range of a kernel's column that holds zeros alone becomes 1.

    Raises:
      UserError: Ranges are missing or nothing can be rounded with them, all by name.
    """
    sizes = model_sizes(tensors)
    reader = _Reader(tensors)
    lists = [_layer(reader, sizes, layer) for layer in range(sizes.layers)]
    if reader.faults:
        raise UserError(
            f"{len(reader.faults)} ranges cannot be used, expected each above 0 and finite "
            f"(calibrate with --do_calib): {listed(reader.faults)}"
        )
    return lists


def point_ranges(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reads the range of every point that has one.

    Args:
      tensors: Variable name to value: kernels and quantizer variables, of any float type.

    Returns:
      Point name to range, float32: [], or of a kernel also [out]. The range of a kernel's column
      that holds zeros alone becomes 1, so that the column can be trained.

    Raises:
      UserError: A range that the op rounds with is missing or cannot be used, all by name.
    """
    lists = scale_lists(tensors)  # Checks them.
    reader = _Reader(tensors)
    found = {}
    for name in points.all_names(len(lists)):
        if not {f"{name}/quant_max", f"{name}/quant_min"} <= tensors.keys():
            continue
        amax = reader.largest(name)
        if amax is not None:
            is_kernel = name.removesuffix("_quantizer") in tensors
            found[name] = np.where(is_kernel & (amax == 0), integers.RANGE_OF_ZEROS, amax)
    return found


def _layer(reader: _Reader, sizes: ModelSizes, layer: int) -> scale_list.ScaleList:
    """Reads the ranges of one layer; what is wrong is noted in `reader`."""
    slots = []
    for slot in range(scale_list.LAST_OUTPUT):
        slots.append(reader.activation(points.full_name(layer, points.BY_SLOT[slot].scope)))
    if layer + 1 < sizes.layers:
        # Checked when that layer is read.
        name = points.full_name(layer + 1, points.BY_SLOT[0].scope)
        slots.append(_Reader(reader.tensors).activation(name))
    else:
        slots.append(scale_list.NO_NEXT_LAYER)
    kernels = {}
    for weight in points.KERNELS:
        kernels[weight.op_input] = reader.kernel(points.full_name(layer, weight.google))
    return scale_list.ScaleList(np.array(slots, np.float32), kernels)


class _Reader:
    """Reads ranges and collects what is wrong with them.

    Attributes:
      tensors: Variable name to value.
      faults: One sentence for each range that cannot be used.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.faults: list[str] = []

    def activation(self, quantizer: str) -> float:
        """Reads one range; 1 where it cannot be used."""
        amax = self.largest(quantizer)
        if amax is None:
            return 1.0
        if amax.size != 1:
            self.faults.append(f"{quantizer} has {amax.size} ranges, expected one")
            return 1.0
        value = float(amax.reshape(()))
        if not scale_list.usable(value):
            self.faults.append(f"{quantizer} is {value:g}")
        return value

    def kernel(self, name: str) -> np.ndarray:
        """Reads the range of each column of a kernel, float32 [out]."""
        quantizer = f"{name}_quantizer"
        kernel = np.asarray(self.tensors[name])
        columns = kernel.shape[1]
        nothing = np.ones(columns, np.float32)
        if kernel.dtype.kind == "i" or not np.isfinite(kernel.astype(np.float32)).all():
            self.faults.append(f"{name} is no kernel of finite floating-point numbers")
            return nothing
        amax = self.largest(quantizer)
        if amax is None:
            return nothing
        if amax.size not in (1, columns) or amax.ndim > 1:
            self.faults.append(f"{quantizer} has {amax.size} ranges, expected one or {columns}")
            return nothing
        ranges = np.broadcast_to(amax.reshape(-1), [columns])
        # A range of 0 is right where all weights are 0, and nowhere else.
        bad = ~scale_list.usable(ranges) & ~((ranges == 0) & ~kernel.any(axis=0))
        if bad.any():
            first = int(np.argmax(bad))
            at = f" of {int(bad.sum())} columns, such as {first}," if amax.size > 1 else ""
            self.faults.append(f"{quantizer}{at} is {ranges[first]:g}")
        return integers.column_ranges(ranges, columns)

    def largest(self, quantizer: str) -> np.ndarray | None:
        """Returns max(|quant_max|, |quant_min|), float32; None, noting why, where there is none."""
        names = [f"{quantizer}/quant_max", f"{quantizer}/quant_min"]
        missing = [name for name in names if name not in self.tensors]
        if missing:
            self.faults.append(f"{' and '.join(missing)} missing")
            return None
        highest, lowest = (np.asarray(self.tensors[name]).astype(np.float32) for name in names)
        if highest.shape != lowest.shape:
            self.faults.append(
                f"{quantizer} has shapes {list(highest.shape)} and {list(lowest.shape)}"
            )
            return None
        if (highest < lowest).any():
            self.faults.append(
                f"{quantizer}: quant_max is below quant_min, {highest.flat[0]:g} < "
                f"{lowest.flat[0]:g}"
            )
            return None
        return np.maximum(np.abs(highest), np.abs(lowest))
