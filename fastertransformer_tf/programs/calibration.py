"""Calibrates the ranges of INT8 on a task's own training data: --do_calib of the runners."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import rich.box
import rich.console
import rich.table
import tqdm
from absl import flags

from fastertransformer_tf.checkpoints import reading, writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic
from fastertransformer_tf.models import modeling, point_encoder
from fastertransformer_tf.programs import cli, inference, range_search
from fastertransformer_tf.quantization import (
    calibrated,
    collecting,
    fold_shift,
    histograms,
    points,
    ranges,
    simulation,
)

_T = TypeVar("_T")

# The method that is no function of a tensor's histogram alone.
BY_ERROR = "layer_error"
METHODS = (BY_ERROR, *histograms.METHODS)
CHECKPOINT = "model.ckpt-calibrated"
RANGES_CSV = "calibrated_ranges.csv"
# As google's run_squad shuffles, and the original's calibration with it.
_SEED = 12345
# Tokens that the method `layer_error` runs its layers on: more of them change no choice.
_SEARCH_TOKENS = 2048

# Builds the model of a checkpoint with an encoder of its options.
Build = Callable[[reading.Checkpoint, modeling.EncoderOptions], inference.Model]


@dataclasses.dataclass(frozen=True)
class CalibrationOptions:
    """How ranges are calibrated.

    Attributes:
      num_batches: Batches to look at.
      batch_size: Examples a batch.
      method: One of METHODS.
      percentile: Of the values to represent, for the method percentile.
      quant_mode: ft1, ft2 or ft3: the mode that the ranges are for.
      fold_shift: Centre the channels of activations first; see `quantization.fold_shift`.
      kernels_by_column: A range for each column of a kernel, else one for all.
    """

    num_batches: int
    batch_size: int
    method: str
    percentile: float
    quant_mode: str
    fold_shift: bool
    kernels_by_column: bool

    @property
    def num_examples(self) -> int:
        """How many examples are looked at."""
        return self.num_batches * self.batch_size

    @property
    def int8_mode(self) -> int:
        """The mode of the op, 1 or 2: the third rounds as the second does."""
        return min(points.QUANT_MODES[self.quant_mode], 2)


def define_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of calibration.

    Args:
      flag_values: Where to define them.
      owner: Name of the program's module, under which --help finds them.
    """
    define = cli.FlagDefiner(flag_values, owner)
    define.boolean(
        "do_calib",
        "Calibrate the ranges of INT8 on training data, and write the checkpoint with them to "
        f"--output_dir/{CHECKPOINT}: ckpt_quantization makes the int8 one of it.",
    )
    define.boolean(
        "if_quant",
        "Train, evaluate and predict as int8 would, simulated in TensorFlow with the ranges of the "
        "checkpoint (without --do_train, of --do_calib in the same run) and the mode of "
        "--quant_mode.",
    )
    define.integer("calib_batch", 4, "Batches of --train_batch_size to calibrate on.", minimum=1)
    define.enum(
        "calib_method",
        BY_ERROR,
        METHODS,
        "How the range of an activation is chosen: of several the one with the least error of the "
        "layer's output, or of the histogram of its magnitudes.",
    )
    define.number("percentile", 99.99, "Of the method percentile.", 50.0, 100.0)
    define.enum(
        "quant_mode",
        "ft2",
        list(points.QUANT_MODES),
        "What the ranges are for: int8_mode 1, 2 or 3.",
    )
    define.boolean(
        "fold_shift",
        "Centre the channels of activations first, by biases that change no result.",
        default=True,
    )
    define.boolean(
        "per_tensor_kernels",
        "One range for each kernel in ft2 and ft3, as the original, instead of one for each "
        "column.",
    )


def options(values: flags.FlagValues) -> CalibrationOptions:
    """Makes the options of parsed flags.

    Raises:
      UserError: Flags that do not go together.
    """
    if values.if_quant:
        _check_simulation(values)
    if values.per_tensor_kernels and values.quant_mode == "ft1":
        raise UserError("--per_tensor_kernels is of ft2 and ft3, but --quant_mode=ft1")
    return CalibrationOptions(
        num_batches=values.calib_batch,
        batch_size=values.train_batch_size,
        method=values.calib_method,
        percentile=values.percentile,
        quant_mode=values.quant_mode,
        fold_shift=values.fold_shift,
        kernels_by_column=not values.per_tensor_kernels,
    )


def _check_simulation(values: flags.FlagValues) -> None:
    """Refuses what the simulation would not do as it is asked.

    Raises:
      UserError: Naming the flag.
    """
    if values.do_train and values.do_calib:
        raise UserError(
            "--do_calib with --do_train --if_quant: calibrate in a run of its own, then train from "
            f"--init_checkpoint=.../{CHECKPOINT}"
        )
    if values.floatx != "float32":
        raise UserError(
            f"--if_quant simulates in float32, but --floatx={values.floatx}: leave one of the two "
            "out"
        )
    for name in ("remove_padding", "int8_mode", "fp8_mode", "export_dir"):
        if values[name].value:
            raise UserError(
                f"--if_quant simulates int8 in TensorFlow, to see its accuracy, but --{name} is of "
                "the op: leave one of the two out"
            )


def simulated_encoder(
    source: reading.Checkpoint, chosen: CalibrationOptions
) -> modeling.EncoderOptions:
    """Makes the options of an encoder that rounds as int8 does, by the ranges of a checkpoint.

    Raises:
      UserError: The checkpoint has no ranges, or some that cannot be used.
    """
    lists = ranges.scale_lists(kernels_and_ranges(source))
    return _with_point(simulation.SimulatedInt8.of_scale_lists(lists, chosen.int8_mode))


def kernels_and_ranges(source: reading.Checkpoint) -> dict[str, np.ndarray]:
    """Reads the variables of a checkpoint that its rounding depends on."""
    return {
        name: np.asarray(source.load(name))
        for name in source.shapes
        if points.is_range_variable(name) or name.endswith("/kernel")
    }


def choose_examples(examples: Sequence[_T], chosen: CalibrationOptions) -> list[_T]:
    """Returns the examples to look at: as many as are wanted, or all, in a fixed random order."""
    order = np.random.default_rng(_SEED).permutation(len(examples))
    return [examples[index] for index in order[: chosen.num_examples]]


def calibrate(
    build: Build,
    source: reading.Checkpoint,
    features: Mapping[str, np.ndarray],
    chosen: CalibrationOptions,
    output_dir: str,
) -> str:
    """Calibrates a checkpoint, writes it with its ranges and prints a table of them.

    Args:
      build: Builds the model.
      source: The float checkpoint.
      features: The model's inputs, [examples, ...].
      chosen: How.
      output_dir: Folder for the checkpoint and the table of all ranges; both appear together.

    Returns:
      The prefix of the checkpoint.

    Raises:
      UserError: The checkpoint is quantized already, or has values that are not
        finite.
    """
    tensors = _float_tensors(source)
    features = {name: value[: chosen.num_examples] for name, value in features.items()}
    batches = _batches(features, chosen.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.fold_shift:
            tensors = _shifted(build, source, tensors, batches)
            prefix = os.path.join(folder, "model.ckpt")
            writing.save_checkpoint(prefix, tensors)
            source = reading.Checkpoint(prefix)
        counted = _count(build, source, batches)
        kernels = calibrated.kernel_ranges(tensors, by_column=chosen.kernels_by_column)
        if chosen.quant_mode in points.FUSE_QKV:
            kernels = calibrated.fuse_qkv(kernels)  # Before the search, which rounds with them.
        amax = _choose(build, source, counted, kernels, features, chosen)
    if chosen.quant_mode in points.FUSE_QKV:
        amax = calibrated.fuse_qkv(amax)
    with atomic.staged_folder(output_dir) as stage:
        writing.write_checkpoint(stage / CHECKPOINT, tensors | calibrated.variables(amax))
        (stage / RANGES_CSV).write_text(calibrated.csv_text(amax, counted), encoding="utf-8")
    _print_ranges(amax, len(kernels) // len(points.KERNELS), chosen)
    prefix = os.path.join(output_dir, CHECKPOINT)
    print(f"calibrated: {prefix}, all ranges: {os.path.join(output_dir, RANGES_CSV)}")
    return prefix


def _float_tensors(source: reading.Checkpoint) -> dict[str, np.ndarray]:
    """Reads all variables but the ranges of a calibration before this one.

    Raises:
      UserError: The checkpoint is int8 already.
    """
    if points.FORMAT_VARIABLE in source.shapes:
        raise UserError(f"checkpoint {source.path} is quantized, expected a float one to calibrate")
    names = (name for name in source.shapes if not points.is_range_variable(name))
    return {name: np.asarray(source.load(name)) for name in names}


def _batches(features: Mapping[str, np.ndarray], batch_size: int) -> list[dict[str, np.ndarray]]:
    """Cuts features into batches, each without the columns past its longest sequence."""
    result = []
    for begin in range(0, len(features["input_mask"]), batch_size):
        batch = {name: value[begin : begin + batch_size] for name, value in features.items()}
        is_real = batch["input_mask"].any(axis=0)
        length = int(np.max(np.flatnonzero(is_real), initial=0)) + 1
        result.append({name: v[:, :length] if v.ndim == 2 else v for name, v in batch.items()})
    return result


def _with_progress(batches: Sequence[_T], description: str) -> Iterator[_T]:
    return iter(tqdm.tqdm(batches, desc=description, unit="batch", file=sys.stderr))


def _with_point(point: point_encoder.Point) -> modeling.EncoderOptions:
    return modeling.EncoderOptions(use_tensorflow=True, taps=point_encoder.Taps(point))


def _shifted(
    build: Build,
    source: reading.Checkpoint,
    tensors: Mapping[str, np.ndarray],
    batches: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Centres the channels of activations on the batches; returns all variables."""
    names = fold_shift.shift_points(ranges.model_sizes(tensors).layers)
    recorder = collecting.Recorder()
    with build(source, _with_point(recorder)) as model, model.graph.as_default():
        collector = collecting.ChannelCollector(
            {name: recorder.tensors[name] for name in names}, model.inputs["input_mask"]
        )
        for batch in _with_progress(batches, "centring channels"):
            collector.run(model.session, range_search.feed_dict(model, batch))
    return fold_shift.fold_shift(tensors, collector.centres())


def _count(
    build: Build,
    source: reading.Checkpoint,
    batches: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, histograms.Histogram]:
    """Counts the magnitudes of every activation on the batches."""
    recorder = collecting.Recorder()
    with build(source, _with_point(recorder)) as model, model.graph.as_default():
        collector = collecting.HistogramCollector(recorder.tensors, model.inputs["input_mask"])
        for batch in _with_progress(batches, "counting"):
            collector.run(model.session, range_search.feed_dict(model, batch))
    return collector.histograms


def _choose(
    build: Build,
    source: reading.Checkpoint,
    counted: Mapping[str, histograms.Histogram],
    kernels: Mapping[str, np.ndarray],
    features: Mapping[str, np.ndarray],
    chosen: CalibrationOptions,
) -> dict[str, Any]:
    """Chooses the range of every point, by the method that was asked for."""
    by_error = chosen.method == BY_ERROR
    method = "percentile" if by_error else chosen.method
    percentile = range_search.START_PERCENTILE if by_error else chosen.percentile
    amax: dict[str, Any] = {
        name: histograms.choose_range(histogram, method, percentile)
        for name, histogram in counted.items()
    }
    if by_error:
        by_layer = calibrated.kernels_by_layer(kernels)
        slots = calibrated.activation_slots(amax, len(by_layer))
        with range_search.LayerErrors(
            lambda encoder: build(source, encoder),
            by_layer,
            chosen.int8_mode,
            _few_tokens(features),
        ) as errors:
            slots = range_search.search(counted, slots, chosen.int8_mode, errors)
        amax = calibrated.with_slots(amax, slots, chosen.int8_mode)
    return amax | dict(kernels)


def _few_tokens(features: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns the first examples, up to a number of tokens, at least one, in one batch."""
    tokens = np.cumsum(features["input_mask"].sum(axis=1))
    count = max(1, int(np.searchsorted(tokens, _SEARCH_TOKENS, side="right")))
    return _batches({name: value[:count] for name, value in features.items()}, count)


def _print_ranges(amax: Mapping[str, Any], num_layers: int, chosen: CalibrationOptions) -> None:
    """Prints the ranges that the op rounds activations with, a row for each layer."""
    table = rich.table.Table(
        title=f"Ranges for int8_mode {chosen.int8_mode}, by {chosen.method}",
        box=rich.box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("layer", justify="right")
    slots = range_search.searched_slots(chosen.int8_mode)
    for slot in slots:
        table.add_column(_COLUMNS[slot], justify="right")
    for layer in range(num_layers):
        row = [amax[points.full_name(layer, points.BY_SLOT[slot].scope)] for slot in slots]
        table.add_row(str(layer), *(f"{value:.4g}" for value in row))
    rich.console.Console().print(table)


_COLUMNS = {
    0: "input",
    9: "context",
    10: "projection",
    11: "layer norm 1",
    13: "activation",
    14: "output product",
}
