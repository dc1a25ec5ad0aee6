"""Runs a model and what became of it on the same inputs: same answers, and how long they took."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.rewriting import sources
from fastertransformer_tf.rewriting.replacing import Precision

# Largest difference of an output that is allowed, against the largest magnitude of the expected
# output where that is above 1. float32: every product is computed in another order. The others: as
# far as that many bits go over a dozen layers.
TOLERANCES = {"float32": 1e-4, "float16": 3e-2, "bfloat16": 2.5e-1}
# With int8, of the root of the mean square, against that of the expected output's deviation.
INT8_TOLERANCE = 0.3
_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Output:
    """How far off an output is.

    Attributes:
      signature: Of the model.
      name: Of the output.
      difference: As TOLERANCES measures it, or INT8_TOLERANCE.
      tolerance: The most that is allowed.
      shape: Of the output.
      rows: "all", or "real tokens" where rows of padding were left out.
    """

    signature: str
    name: str
    difference: float
    tolerance: float
    shape: list[int]
    rows: str

    @property
    def is_right(self) -> bool:
        """Whether it is within the tolerance."""
        return self.difference <= self.tolerance


def run(session: Any, signature: sources.Signature, given: Mapping[str, np.ndarray]) -> Any:
    """Runs a signature: output name to array."""
    feeds = {signature.inputs[name]: value for name, value in given.items()}
    return session.run(signature.outputs, feeds)


def compare(
    name: str,
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    precision: Precision,
    real: Sequence[np.ndarray],
) -> list[Output]:
    """Compares all outputs of a signature.

    Args:
      name: Of the signature.
      expected: The source's outputs.
      actual: The result's.
      precision: What the op computes in, which the tolerance depends on.
      real: Which tokens are real, bool [B,S], of each encoder whose padding is removed.
    """
    result = []
    for key, value in expected.items():
        wanted, got = np.asarray(value), np.asarray(actual[key])
        if wanted.shape != got.shape:
            raise UserError(
                f"output {key} of {name} has shape {list(got.shape)}, expected {list(wanted.shape)}"
            )
        rows = "all"
        keep = _real_rows(wanted.shape, real)
        difference, tolerance = _difference(wanted, got, precision)
        # What agrees in every row needs no exception: a pooled output may have such a shape too.
        if keep is not None and difference > tolerance:
            wanted, got, rows = (
                wanted.reshape(keep.size, -1),
                got.reshape(keep.size, -1),
                "real tokens",
            )
            wanted, got = wanted[keep.ravel()], got[keep.ravel()]
            difference, tolerance = _difference(wanted, got, precision)
        result.append(Output(name, key, difference, tolerance, list(value.shape), rows))
    return result


def _real_rows(shape: Sequence[int], real: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns which rows of an output are of real tokens, where it has a row for each token."""
    keep = None
    for mask in real:
        if tuple(shape[:2]) == mask.shape or (len(shape) == 2 and shape[0] == mask.size):
            keep = mask if keep is None else keep & mask
    return keep


def _difference(
    expected: np.ndarray, actual: np.ndarray, precision: Precision
) -> tuple[float, float]:
    """Measures how far off an output is; also the tolerance."""
    if expected.dtype.kind not in "fV" and expected.dtype.name != "bfloat16":
        tolerance = 0.0 if precision.floatx == "float32" and not precision.int8_mode else 1.0
        return float(np.mean(expected != actual)) if expected.size else 0.0, tolerance
    wanted, got = expected.astype(np.float64), actual.astype(np.float64)
    if not wanted.size:
        return 0.0, 0.0
    if not np.isfinite(got[np.isfinite(wanted)]).all():
        return float("inf"), TOLERANCES[precision.floatx]
    wanted, got = (np.nan_to_num(x, posinf=0.0, neginf=0.0) for x in (wanted, got))
    if precision.int8_mode:
        spread = np.sqrt(np.mean(np.square(wanted - wanted.mean()))) or 1.0
        return float(np.sqrt(np.mean(np.square(got - wanted))) / spread), INT8_TOLERANCE
    scale = max(1.0, float(np.abs(wanted).max()))
    return float(np.abs(got - wanted).max()) / scale, TOLERANCES[precision.floatx]


def require_right(outputs: Sequence[Output]) -> None:
    """Refuses a result that is not within the tolerance.

    Raises:
      UserError: Saying how far off which outputs are.
    """
    wrong = [
        f"output {o.name} of {o.signature} is off by {o.difference:.3g}, expected at most "
        f"{o.tolerance:g}"
        for o in outputs
        if not o.is_right
    ]
    if wrong:
        raise UserError(f"the result is not written, it differs from the source: {listed(wrong)}")


def milliseconds(
    contestants: Sequence[tuple[Any, sources.Signature]], given: Mapping[str, np.ndarray]
) -> list[list[float]]:
    """Times a signature of several sessions in turn, after a run that is not timed.

    Returns:
      For each the milliseconds of every run.
    """
    times: list[list[float]] = [[] for _ in contestants]
    for turn in range(_RUNS + 1):
        for index, (session, signature) in enumerate(contestants):
            begin = time.perf_counter()
            run(session, signature, given)
            if turn:
                times[index].append(1e3 * (time.perf_counter() - begin))
    return times
