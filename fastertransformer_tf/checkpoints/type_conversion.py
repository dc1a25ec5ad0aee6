"""Casts the variables of a checkpoint to float16 or bfloat16, but for those that must not be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from fastertransformer_tf import spec
from fastertransformer_tf.checkpoints import reading, writing
from fastertransformer_tf.errors import UserError, listed

_KEPT = re.compile(r"quant|amaxList|(^|/)beta[12]_power(_\d+)?$")
_SCALE_LIST = re.compile(r"(.*/layer_\d+)/amaxList$")
# The kernels of a layer that INT8 tools overwrite with packed bytes.
_QUANTIZED_KERNELS = tuple(w.google for w in spec.LAYER_WEIGHTS if w.is_quantized)
# Trained weights are far below this; packed int8 bytes read as floats are far above, or NaN.
_LARGEST_WEIGHT = 1e4


def convert_tensors(
    tensors: Mapping[str, np.ndarray], dtype: str = "float16", *, allow_overflow: bool = False
) -> dict[str, np.ndarray]:
    """Casts float32 and float64 variables.

    Args:
      tensors: Variable name to value.
      dtype: "float16" or "bfloat16".
      allow_overflow: Clip finite values beyond the type's largest to it, instead of refusing.

    Returns:
      All variables, those that ckpt_type_convert's docstring names as they were.

    Raises:
      UserError: Another dtype; packed int8 bytes of the original INT8 tools; values that are not
        finite or overflow, by name.
    """
    if dtype not in spec.HALF_TYPES:
        raise UserError(f"dtype is {dtype!r}, expected one of {', '.join(spec.HALF_TYPES)}")
    check_not_packed(tensors)
    converted = dict(tensors)
    unusable: list[str] = []
    overflowing: list[str] = []
    for name, value in tensors.items():
        is_slot = name.rpartition("/")[0] in tensors
        if value.dtype not in (np.float32, np.float64) or _KEPT.search(name) or is_slot:
            continue
        finite = np.isfinite(value)
        if not finite.all():
            unusable.append(f"{name}: {np.sum(~finite)} of {value.size} values")
            continue
        converted[name], overflows = _cast(value, dtype)
        if overflows.any():
            worst = value[overflows][np.argmax(np.abs(value[overflows]))]
            overflowing.append(f"{name}: {overflows.sum()} of {value.size} values, e.g. {worst:g}")
    if unusable:
        raise UserError(
            f"{len(unusable)} variables hold values that are not finite, expected weights: "
            + listed(unusable)
        )
    if overflowing and not allow_overflow:
        raise UserError(
            f"{len(overflowing)} variables hold values beyond {dtype}'s largest, "
            f"{float(tf.as_dtype(dtype).max):g} (allow_overflow clips them): {listed(overflowing)}"
        )
    return converted


def _cast(value: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Casts finite values, clipping what overflows; also returns which values did."""
    np_dtype = tf.as_dtype(dtype).as_numpy_dtype
    largest = float(tf.as_dtype(dtype).max)
    with np.errstate(over="ignore"):
        cast = value.astype(np_dtype)
        overflows = ~np.isfinite(cast.astype(np.float32))
    if overflows.any():
        cast = np.clip(value, -largest, largest).astype(np_dtype)
    return cast, overflows


def check_not_packed(tensors: Mapping[str, np.ndarray]) -> None:
    """Refuses a checkpoint of the original INT8 tools: int8 bytes packed in float buffers.

    Casting packed bytes as if they were floats would destroy them.

    Args:
      tensors: Variable name to value.

    Raises:
      UserError: It is one; says by which variables that was seen.
    """
    for name in tensors:
        match = _SCALE_LIST.match(name)
        if not match:
            continue
        for kernel in _QUANTIZED_KERNELS:
            weights = tensors.get(f"{match[1]}/{kernel}")
            if weights is None or weights.dtype == np.int8:
                continue
            weights = weights.astype(np.float32)
            if not np.isfinite(weights).all() or np.abs(weights).max() > _LARGEST_WEIGHT:
                raise UserError(
                    f"the checkpoint is quantized: it has {name}, and {match[1]}/{kernel} holds "
                    f"packed bytes, not weights; convert the type first, then quantize"
                )


def convert_checkpoint(
    init_checkpoint: str | Path,
    fp16_checkpoint: str | Path,
    dtype: str = "float16",
    *,
    allow_overflow: bool = False,
) -> list[tuple[str, str, str]]:
    """Reads a checkpoint, casts its float32 variables and writes it under another name.

    Args:
      init_checkpoint: The checkpoint to read, as `reading.Checkpoint` takes it.
      fp16_checkpoint: Prefix to write; may be the same.
      dtype: As for `convert_tensors`.
      allow_overflow: As for `convert_tensors`.

    Returns:
      (name, old dtype, new dtype) of every variable, by name.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      UserError: It cannot be read, or as for `convert_tensors`; nothing is written.
    """
    writing.check_prefix(fp16_checkpoint, "fp16_checkpoint")
    source = reading.Checkpoint(init_checkpoint)
    # A scalar or a text comes as Python's own type.
    tensors = {name: np.asarray(source.load(name)) for name in sorted(source.shapes)}
    converted = convert_tensors(tensors, dtype, allow_overflow=allow_overflow)
    writing.save_checkpoint(fp16_checkpoint, converted)
    return [(n, tensors[n].dtype.name, converted[n].dtype.name) for n in tensors]
