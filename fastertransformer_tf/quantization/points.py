"""The quantizer points of a BERT encoder, in one table. Free of TensorFlow.

A point is a tensor that a quantizer may sit on. Its range is kept in a checkpoint as the two
variables `<name>/quant_max` and `<name>/quant_min`. The scopes are those of the FasterTransformer
4.0 quantization tools, so that their checkpoints are understood.
"""

from __future__ import annotations

import dataclasses
import re

from fastertransformer_tf import spec

# What ranges are calibrated or trained for, and the int8_mode that it goes with.
QUANT_MODES = {"ft1": 1, "ft2": 2, "ft3": 3}
_EVERY = ("ft1", "ft2", "ft3")
_RESIDUAL_INT8 = ("ft2", "ft3")

LAYER_SCOPE = "bert/encoder/layer_{}"
FINAL_POINT = "bert/final_input_quantizer"
# The variables that make a checkpoint an int8 one; the first below a layer.
SCALE_LIST = "amaxList"
FORMAT_VARIABLE = "bert/encoder/int8_format"
FORMAT = 1

_LAYER = re.compile(r"bert/encoder/layer_(\d+)/(.+)$")
_RANGE_VARIABLE = re.compile(r"_quantizer/quant_(max|min)$")


@dataclasses.dataclass(frozen=True)
class Point:
    """A quantizer on an activation of a layer.

    Attributes:
      scope: Its name below `bert/encoder/layer_<i>/`.
      slot: Its place in part 1 of the scale list; None where the list has none for it.
      quant_modes: Where fake quantization rounds it in training.
      rounded_in: The modes of the op, 1 and 2 (3 is 2), that round it.
      rounded_with: The slot whose range the op rounds it with.
    """

    scope: str
    slot: int | None
    quant_modes: tuple[str, ...] = ()
    rounded_in: tuple[int, ...] = ()
    rounded_with: int | None = None


# docs/int8.md tells what each of them is. Slot 15 is the next layer's slot 0.
POINTS: tuple[Point, ...] = (
    Point("attention/self/query/input_quantizer", 0, _EVERY, (1, 2), 0),
    Point("attention/self/key/input_quantizer", None, _EVERY, (1, 2), 0),
    Point("attention/self/value/input_quantizer", None, _EVERY, (1, 2), 0),
    Point("attention/self/query/aftergemm_quantizer", 1, _RESIDUAL_INT8),
    Point("attention/self/matmul_q_input_quantizer", 2, _EVERY),
    Point("attention/self/key/aftergemm_quantizer", 3, _RESIDUAL_INT8),
    Point("attention/self/matmul_k_input_quantizer", 4, _EVERY),
    Point("attention/self/value/aftergemm_quantizer", 5, _RESIDUAL_INT8),
    Point("attention/self/matmul_v_input_quantizer", 6, _EVERY),
    Point("attention/self/softmax_input_quantizer", 7, ("ft3",)),
    Point("attention/self/matmul_a_input_quantizer", 8, _EVERY),
    Point("attention/output/dense/input_quantizer", 9, _EVERY, (1, 2), 9),
    Point("attention/output/dense/aftergemm_quantizer", 10, _RESIDUAL_INT8, (2,), 10),
    Point("attention/output/add_residual_input_quantizer", None, _RESIDUAL_INT8, (2,), 0),
    Point("attention/output/add_local_input_quantizer", None),
    Point("intermediate/dense/input_quantizer", 11, _EVERY, (1, 2), 11),
    Point("intermediate/dense/aftergemm_quantizer", 12, _RESIDUAL_INT8),
    Point("output/dense/input_quantizer", 13, _EVERY, (1, 2), 13),
    Point("output/dense/aftergemm_quantizer", 14, _RESIDUAL_INT8, (2,), 14),
    Point("output/add_residual_input_quantizer", None, _RESIDUAL_INT8, (2,), 11),
    Point("output/add_local_input_quantizer", None),
)

# Those whose tensors are [B,N,S,S].
OVER_KEYS = ("attention/self/softmax_input_quantizer", "attention/self/matmul_a_input_quantizer")
BY_SCOPE = {point.scope: point for point in POINTS}
BY_SLOT = {point.slot: point for point in POINTS if point.slot is not None}
# Where query, key and value have one range, as the original's fused attention needs it: of the
# points of each row, and of kernels with one range each.
FUSE_QKV = ("ft2", "ft3")
FUSED_QKV: tuple[tuple[str, ...], ...] = tuple(
    tuple(f"attention/self/{scope}" for scope in scopes)
    for scopes in (
        ("query/aftergemm_quantizer", "key/aftergemm_quantizer", "value/aftergemm_quantizer"),
        ("matmul_q_input_quantizer", "matmul_k_input_quantizer", "matmul_v_input_quantizer"),
    )
)
FUSED_KERNELS: tuple[str, ...] = tuple(
    f"attention/self/{scope}/kernel_quantizer" for scope in ("query", "key", "value")
)

KERNELS: tuple[spec.LayerWeight, ...] = tuple(w for w in spec.LAYER_WEIGHTS if w.is_quantized)


def kernel_scope(weight: spec.LayerWeight) -> str:
    """Returns the scope of a kernel's quantizer, below the layer's."""
    return f"{weight.google}_quantizer"


KERNEL_SCOPES: dict[str, spec.LayerWeight] = {kernel_scope(weight): weight for weight in KERNELS}


def full_name(layer: int, scope: str) -> str:
    """Returns the name of a point or variable of a layer, e.g. `bert/encoder/layer_0/...`."""
    return f"{LAYER_SCOPE.format(layer)}/{scope}"


def split_name(name: str) -> tuple[int, str] | None:
    """Returns the layer and the scope below it; None of what is in no layer."""
    match = _LAYER.match(name)
    return (int(match[1]), match[2]) if match else None


def is_range_variable(name: str) -> bool:
    """Whether a variable is one of the two of a quantizer."""
    return _RANGE_VARIABLE.search(name) is not None


def all_names(num_layers: int) -> list[str]:
    """Lists the points of a model: activations and kernels of every layer, and the final one."""
    scopes = (*BY_SCOPE, *KERNEL_SCOPES)
    return [full_name(layer, scope) for layer in range(num_layers) for scope in scopes] + [
        FINAL_POINT
    ]
