"""Calibrates the ranges of INT8 by what a float model computes, whatever runs it.

Who runs the model shows what passes its points (`Observed`); which of it matters and what is made
of it is here. Free of TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import (
    calibrated,
    fold_shift,
    histograms,
    points,
    range_search,
    ranges,
)

_T = TypeVar("_T")

# The method that is no function of a tensor's histogram alone.
BY_ERROR = "layer_error"
METHODS = (BY_ERROR, *histograms.METHODS)
# As google's run_squad shuffles, and the original's calibration with it.
_SEED = 12345
# Tokens that the method `layer_error` runs its layers on: more of them change no choice.
_SEARCH_TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class CalibrationOptions:
    """How ranges are calibrated.

    Attributes:
      method: One of METHODS.
      percentile: Of the values to represent, for the method percentile.
      quant_mode: ft1, ft2 or ft3: the mode that the ranges are for.
      fold_shift: Centre the channels of activations first; see `quantization.fold_shift`.
      kernels_by_column: A range for each column of a kernel, else one for all.
    """

    method: str = BY_ERROR
    percentile: float = 99.99
    quant_mode: str = "ft2"
    fold_shift: bool = True
    kernels_by_column: bool = True

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          UserError: One is unknown or out of range, or two do not go together.
        """
        for name, known in (("method", METHODS), ("quant_mode", tuple(points.QUANT_MODES))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}"
                )
        if not 50 <= self.percentile <= 100:
            raise UserError(f"percentile is {self.percentile}, expected 50 to 100")
        if not self.kernels_by_column and self.quant_mode == "ft1":
            raise UserError(
                "one range for each kernel is of quant_mode ft2 and ft3, but quant_mode is ft1"
            )

    @property
    def int8_mode(self) -> int:
        """The mode of the op, 1 or 2: the third rounds as the second does."""
        return min(points.QUANT_MODES[self.quant_mode], 2)


class Observed(Protocol):
    """A float model and batches of a task's data, of which padding does not count."""

    def centres(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the middle between the extremes of each channel, float64, by point name.

        Args:
          names: Points whose tensors are [B,S,channels].
        """

    def count(self) -> dict[str, histograms.Histogram]:
        """Counts the magnitudes of every activation, by point name."""

    def errors_of_layers(
        self, kernels: Sequence[Mapping[str, np.ndarray]], int8_mode: int
    ) -> contextlib.AbstractContextManager[range_search.LayerErrors]:
        """Runs layers with rounded tensors, on the first batches alone.

        Args:
          kernels: For each layer the op input of a kernel to its range.
          int8_mode: 1 or 2.
        """


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
      tensors: The variables of the model, biases moved by `fold_shift`.
      amax: Point name to range: of an activation a number, of a kernel float32 [] or [out].
      counted: Point name to histogram, of activations.
    """

    tensors: Mapping[str, np.ndarray]
    amax: Mapping[str, Any]
    counted: Mapping[str, histograms.Histogram]


def calibrate(
    tensors: Mapping[str, np.ndarray],
    observe: Callable[[Mapping[str, np.ndarray]], Observed],
    options: CalibrationOptions,
) -> Calibration:
    """Chooses the range of every point.

    Args:
      tensors: The variables of a float model by google's names.
      observe: Makes the model of variables: of `tensors`, then of those with moved biases.
      options: How.

    Raises:
      UserError: The model is no BERT, or has values that are not finite.
    """
    observed = observe(tensors)
    if options.fold_shift:
        names = fold_shift.shift_points(ranges.model_sizes(tensors).layers)
        tensors = fold_shift.fold_shift(tensors, observed.centres(names))
        observed = observe(tensors)
    counted = observed.count()
    kernels: dict[str, Any] = calibrated.kernel_ranges(tensors, by_column=options.kernels_by_column)
    if options.quant_mode in points.FUSE_QKV:
        kernels = calibrated.fuse_qkv(kernels)  # Before the search, which rounds with them.
    amax = _choose(observed, counted, kernels, options)
    if options.quant_mode in points.FUSE_QKV:
        amax = calibrated.fuse_qkv(amax)
    return Calibration(tensors, amax, counted)


def _choose(
    observed: Observed,
    counted: Mapping[str, histograms.Histogram],
    kernels: Mapping[str, np.ndarray],
    options: CalibrationOptions,
) -> dict[str, Any]:
    """Chooses the range of every point, by the method that was asked for."""
    by_error = options.method == BY_ERROR
    method = "percentile" if by_error else options.method
    percentile = range_search.START_PERCENTILE if by_error else options.percentile
    amax: dict[str, Any] = {
        name: histograms.choose_range(histogram, method, percentile)
        for name, histogram in counted.items()
    }
    if by_error:
        by_layer = calibrated.kernels_by_layer(kernels)
        slots = calibrated.activation_slots(amax, len(by_layer))
        with observed.errors_of_layers(by_layer, options.int8_mode) as errors:
            slots = range_search.search(counted, slots, options.int8_mode, errors)
        amax = calibrated.with_slots(amax, slots, options.int8_mode)
    return amax | dict(kernels)


def choose_examples(examples: Sequence[_T], count: int) -> list[_T]:
    """Returns the examples to look at: as many as are wanted, or all, in a fixed random order."""
    order = np.random.default_rng(_SEED).permutation(len(examples))
    return [examples[index] for index in order[:count]]


def batches(features: Mapping[str, np.ndarray], batch_size: int) -> list[dict[str, np.ndarray]]:
    """Cuts features into batches, each without the columns past its longest sequence.

    Args:
      features: The model's inputs, [examples, ...], with input_mask [examples, S].
      batch_size: Examples a batch.
    """
    result = []
    for begin in range(0, len(features["input_mask"]), batch_size):
        batch = {name: value[begin : begin + batch_size] for name, value in features.items()}
        is_real = batch["input_mask"].any(axis=0)
        length = int(np.max(np.flatnonzero(is_real), initial=0)) + 1
        result.append({name: v[:, :length] if v.ndim == 2 else v for name, v in batch.items()})
    return result


def few_tokens(features: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns the first examples, up to a number of tokens, at least one, in one batch."""
    count = count_of_few_tokens(features["input_mask"].sum(axis=1))
    return batches({name: value[:count] for name, value in features.items()}, count)


def count_of_few_tokens(lengths: np.ndarray) -> int:
    """Returns how many first sequences the method `layer_error` runs its layers on.

    Args:
      lengths: The tokens of each, [examples].
    """
    return max(1, int(np.searchsorted(np.cumsum(lengths), _SEARCH_TOKENS, side="right")))
