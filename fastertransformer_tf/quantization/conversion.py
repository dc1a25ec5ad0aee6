"""Turns a checkpoint with calibrated ranges into one with int8 kernels and scale lists."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from fastertransformer_tf.checkpoints import reading, writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import integers, points, ranges

INT8_MODES = tuple(points.QUANT_MODES.values())
# What the optimizer keeps beside a weight: three times the checkpoint, and of no use with int8.
_OPTIMIZER_SLOT = re.compile(r"/adam_[mv]$")


def quantize_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Quantizes the variables of a checkpoint.

    Args:
      tensors: Variable name to value; kernels in any float type.

    Returns:
      The six kernels of each layer int8 under their names, `amaxList` of each layer float32 and
      `bert/encoder/int8_format`; all other variables as they were, without those of quantizers
      and of the optimizer.

    Raises:
      UserError: The checkpoint is quantized already, is no BERT, or has ranges that cannot be
        used.
    """
    _check_not_quantized(tensors)
    quantized = {
        name: value
        for name, value in tensors.items()
        if not (points.is_range_variable(name) or _OPTIMIZER_SLOT.search(name))
    }
    for layer, scales in enumerate(ranges.scale_lists(tensors)):
        for weight in points.KERNELS:
            name = points.full_name(layer, weight.google)
            kernel_ranges = scales.kernels[weight.op_input]
            quantized[name] = integers.quantize_kernel(np.asarray(tensors[name]), kernel_ranges)
        quantized[points.full_name(layer, points.SCALE_LIST)] = scales.to_array()
    quantized[points.FORMAT_VARIABLE] = np.array(points.FORMAT, np.int32)
    return quantized


def _check_not_quantized(tensors: Mapping[str, np.ndarray]) -> None:
    """Refuses what this program or the original tools have quantized.

    Raises:
      UserError: Naming a variable that tells so.
    """
    for name, value in tensors.items():
        is_ours = name == points.FORMAT_VARIABLE or name.endswith(f"/{points.SCALE_LIST}")
        if is_ours or value.dtype == np.int8:
            raise UserError(
                f"the checkpoint is quantized: it has {name}, {value.dtype}; expected one with "
                "float kernels and quantizer ranges"
            )


def quantize_checkpoint(
    init_checkpoint: str | os.PathLike[str],
    quantized_checkpoint: str | os.PathLike[str],
    int8_mode: int = 1,
) -> ranges.ModelSizes:
    """Reads a checkpoint with ranges, quantizes it and writes it under another name.

    Both modes read the same file: a kernel quantizer of one range gives all columns that range, one
    of a range for each column gives each its own.

    Args:
      init_checkpoint: The checkpoint to read, as `reading.Checkpoint` takes it.
      quantized_checkpoint: Prefix to write; may be the same.
      int8_mode: 1, 2 or 3: what the ranges are for.

    Returns:
      The sizes of the model.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      UserError: It cannot be read, or as for `quantize_tensors`; nothing is written.
    """
    if int8_mode not in INT8_MODES:
        raise UserError(f"int8_mode is {int8_mode}, expected 1, 2 or 3")
    writing.check_prefix(quantized_checkpoint, "quantized_checkpoint")
    source = reading.Checkpoint(init_checkpoint)
    # A scalar or a text comes as Python's own type.
    tensors = {name: np.asarray(source.load(name)) for name in sorted(source.shapes)}
    quantized = quantize_tensors(tensors)
    writing.save_checkpoint(quantized_checkpoint, quantized)
    return ranges.model_sizes(quantized)
