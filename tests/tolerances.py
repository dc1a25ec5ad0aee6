"""The one table of numerical bounds, by dtype, and the two ways to use it.

Outputs of a BERT layer leave a layer norm: their scale is about 1 whatever the sizes, so one
absolute and one relative bound per dtype serve every shape. Machine epsilons: float32 1.2e-7,
float16 9.8e-4, bfloat16 7.8e-3. The bounds leave room for a dozen layers of roundings.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """|actual - expected| <= atol + rtol * |expected|."""

    atol: float
    rtol: float


# Hidden states after a whole encoder (up to 12 layers) against the float64 reference or against
# TensorFlow's graph, both fed the same (already rounded) weights and inputs.
ENCODER: dict[str, Tolerance] = {
    "float32": Tolerance(atol=2e-5, rtol=1e-5),
    "float16": Tolerance(atol=2e-2, rtol=1e-2),
    "bfloat16": Tolerance(atol=1.2e-1, rtol=3e-2),
}

# Every number of the hidden states of all layers under PyTorch against PyTorch in float64.
TORCH_FLOAT32 = 1e-5

# Mean error of int8 against float under PyTorch, random weights, ranges of the very batch.
TORCH_INT8_MEAN = 0.1

# Accuracy of int8 on MRPC's dev set: of its 408 pairs so many may be answered otherwise.
MRPC_INT8 = 8 / 408

# Classifier logits of the fine-tuned MiniLM checkpoints against TensorFlow's own transformer in
# float32: each of the 408 pairs of MRPC's dev set within 1e-4.
LOGITS: dict[str, Tolerance] = {
    "float32": Tolerance(atol=1e-4, rtol=0.0),
    "float16": Tolerance(atol=3e-2, rtol=1e-2),
    "bfloat16": Tolerance(atol=2.5e-1, rtol=5e-2),
}

# INT8 against integers in float64. A sequence in which no number lies close to the middle of two
# integers agrees to float32's precision; elsewhere an integer may be another, and moves what comes
# after it by steps of a hundredth: on the mean of all values little.
INT8_CERTAIN = 1e-4
INT8_MEAN: dict[str, float] = {"float32": 0.02, "float16": 0.03, "bfloat16": 0.06}

# FP8 against float8 numbers and exact sums in float64, two layers: tensor cores' sums are coarse,
# and a float8 number's neighbour is a sixteenth away. Measured: 0.022 in float32.
FP8_MEAN = 0.06

# Our error against float64 may be this many times that of TensorFlow's graph in the same precision
# (plus one rounding of the output, so that an exact baseline does not make the rule void).
ERROR_FACTOR = 2.0
EPSILON: dict[str, float] = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def assert_close(
    actual: np.ndarray,
    expected: np.ndarray,
    dtype: str,
    table: dict[str, Tolerance] = ENCODER,
    message: str = "",
) -> None:
    """Fails unless every element of `actual` is finite and within the dtype's bound."""
    actual = np.asarray(actual).astype(np.float64)
    expected = np.asarray(expected).astype(np.float64)
    bound = table[dtype]
    np.testing.assert_allclose(
        actual, expected, rtol=bound.rtol, atol=bound.atol, equal_nan=False, err_msg=message
    )


def assert_no_worse(
    actual: np.ndarray, baseline: np.ndarray, reference: np.ndarray, dtype: str
) -> None:
    """Fails if our largest error is above twice that of a baseline in the same precision.

    Args:
        actual: Our result.
        baseline: What TensorFlow's own graph gives in the same dtype.
        reference: The float64 truth.
        dtype: "float32", "float16" or "bfloat16".
    """
    reference = np.asarray(reference).astype(np.float64)
    ours = np.abs(np.asarray(actual).astype(np.float64) - reference).max(initial=0.0)
    theirs = np.abs(np.asarray(baseline).astype(np.float64) - reference).max(initial=0.0)
    rounding = EPSILON[dtype] * np.abs(reference).max(initial=0.0)
    assert ours <= ERROR_FACTOR * theirs + rounding, (
        f"our max error {ours:.3e}, TensorFlow's {theirs:.3e} in {dtype}: above "
        f"{ERROR_FACTOR} times it plus one rounding ({rounding:.1e})"
    )
