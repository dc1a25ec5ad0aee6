"""Ranges of all points of a model, as quantizer variables and as a table. Free of TensorFlow."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastertransformer_tf.quantization import histograms, integers, points, ranges, scale_list


def kernel_ranges(tensors: Mapping[str, np.ndarray], *, by_column: bool) -> dict[str, np.ndarray]:
    """Returns the largest magnitude of every kernel: what represents all its weights.

    Args:
      tensors: Variable name to value.
      by_column: A range for each output column, else one for the kernel.

    Returns:
      Kernel quantizer name to range, float32 [out] or []; 0 where all weights are 0.

    Raises:
      UserError: The tensors are no BERT.
    """
    axis = 0 if by_column else None
    return {
        name: np.abs(np.asarray(tensors[kernel]).astype(np.float32)).max(axis=axis)
        for name, kernel in _kernels(ranges.model_sizes(tensors).layers).items()
    }


def _kernels(num_layers: int) -> dict[str, str]:
    """Kernel quantizer name to kernel name, of all layers."""
    return {
        points.full_name(layer, scope): points.full_name(layer, weight.google)
        for layer in range(num_layers)
        for scope, weight in points.KERNEL_SCOPES.items()
    }


def kernels_by_layer(amax: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns for each layer the op input of each kernel to its range, above 0.

    Args:
      amax: What `kernel_ranges` returned.
    """
    layers: dict[int, dict[str, np.ndarray]] = {}
    for name, value in amax.items():
        layer, scope = points.split_name(name) or (0, "")
        usable = np.where(value == 0, integers.RANGE_OF_ZEROS, value)
        layers.setdefault(layer, {})[points.KERNEL_SCOPES[scope].op_input] = usable
    return [layers[layer] for layer in range(len(layers))]


def activation_slots(amax: Mapping[str, float], num_layers: int) -> np.ndarray:
    """Returns the ranges of all slots of the scale lists, float32 [L,16].

    Args:
      amax: Point name to range.
      num_layers: L.
    """
    slots = np.full((num_layers, scale_list.NUM_SLOTS), scale_list.NO_NEXT_LAYER, np.float32)
    for layer in range(num_layers):
        for slot, point in points.BY_SLOT.items():
            slots[layer, slot] = amax[points.full_name(layer, point.scope)]
    slots[:-1, scale_list.LAST_OUTPUT] = slots[1:, 0]
    return slots


def with_slots(amax: Mapping[str, float], slots: np.ndarray, int8_mode: int) -> dict[str, float]:
    """Replaces the ranges that the op rounds with by those of `slots`, [L,16].

    A point that reads the same tensor as one of a slot gets that one's range.

    Args:
      amax: Point name to range.
      slots: Those of `activation_slots`, changed.
      int8_mode: 1 or 2: which of them are rounded.
    """
    changed = dict(amax)
    for layer, row in enumerate(slots):
        for point in points.POINTS:
            if int8_mode in point.rounded_in:
                assert point.rounded_with is not None
                changed[points.full_name(layer, point.scope)] = float(row[point.rounded_with])
    return changed


def fuse_qkv(amax: Mapping[str, Any]) -> dict[str, Any]:
    """Gives query, key and value one range: of products, of what has its bias, of kernels.

    The original's fused attention needs that of its mode 2. Kernels with a range for each column
    stay: their columns have nothing in common.
    """
    fused = dict(amax)
    for name in amax:
        split = points.split_name(name)
        if split is None:
            continue
        layer, scope = split
        for group in (*points.FUSED_QKV, points.FUSED_KERNELS):
            names = [points.full_name(layer, member) for member in group]
            if scope in group and all(np.ndim(amax[member]) == 0 for member in names):
                fused[name] = max(amax[member] for member in names)
    return fused


def variables(amax: Mapping[str, np.ndarray | float]) -> dict[str, np.ndarray]:
    """Returns the two variables of each quantizer, float32, symmetric about 0."""
    result = {}
    for name, value in amax.items():
        result[f"{name}/quant_max"] = np.asarray(value, np.float32)
        result[f"{name}/quant_min"] = -np.asarray(value, np.float32)
    return result


def csv_text(
    amax: Mapping[str, np.ndarray | float], counted: Mapping[str, histograms.Histogram]
) -> str:
    """Writes a row for every point.

    Args:
      amax: Point name to range; of a range for each column the smallest and the largest are told.
      counted: Point name to histogram, of activations.

    Returns:
      CSV with the columns point, range, smallest_range (of columns), largest_value and
      percent_within: how many of the values the range represents.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["point", "range", "smallest_range", "largest_value", "percent_within"])
    for name, value in amax.items():
        row = [name, f"{np.max(value):.9g}", f"{np.min(value):.9g}"]
        histogram = counted.get(name)
        if histogram is None:
            row += [f"{np.max(value):.9g}", "100"]
        else:
            row += [f"{histogram.largest:.9g}", f"{100 * histogram.share_within(float(value)):.6g}"]
        writer.writerow(row)
    return text.getvalue()
