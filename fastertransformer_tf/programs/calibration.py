"""Calibrates the ranges of INT8 on a task's own training data: --do_calib of the runners."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import tqdm
from absl import flags

from fastertransformer_tf.checkpoints import reading, writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic
from fastertransformer_tf.models import modeling, point_encoder
from fastertransformer_tf.programs import calibration_flags, cli, inference, layer_errors
from fastertransformer_tf.programs.calibration_flags import CHECKPOINT, RANGES_CSV
from fastertransformer_tf.quantization import (
    calibrated,
    calibrating,
    collecting,
    histograms,
    points,
    ranges,
    simulation,
)

_T = TypeVar("_T")

# Builds the model of a checkpoint with an encoder of its options.
Build = Callable[[reading.Checkpoint, modeling.EncoderOptions], inference.Model]


def define_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of calibration, and of its simulation.

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
    calibration_flags.define_flags(flag_values, owner)


def options(values: flags.FlagValues) -> calibrating.CalibrationOptions:
    """Makes the options of parsed flags.

    Raises:
      UserError: Flags that do not go together.
    """
    if values.if_quant:
        _check_simulation(values)
    return calibration_flags.options(values)


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
    source: reading.Checkpoint, chosen: calibrating.CalibrationOptions
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


def choose_examples(examples: Sequence[_T], values: flags.FlagValues) -> list[_T]:
    """Returns the examples that --calib_batch and --train_batch_size ask for."""
    return calibrating.choose_examples(examples, values.calib_batch * values.train_batch_size)


def calibrate(
    build: Build,
    source: reading.Checkpoint,
    features: Mapping[str, np.ndarray],
    values: flags.FlagValues,
) -> str:
    """Calibrates a checkpoint, writes it with its ranges and prints a table of them.

    The checkpoint and the table of all ranges appear in --output_dir together.

    Args:
      build: Builds the model.
      source: The float checkpoint.
      features: The model's inputs, [examples, ...].
      values: The parsed flags.

    Returns:
      The prefix of the checkpoint.

    Raises:
      UserError: The checkpoint is quantized already, or has values that are not
        finite.
    """
    chosen = options(values)
    tensors = _float_tensors(source)
    num_examples = values.calib_batch * values.train_batch_size
    features = {name: value[:num_examples] for name, value in features.items()}
    batches = calibrating.batches(features, values.train_batch_size)
    with tempfile.TemporaryDirectory() as folder:

        def observe(changed: Mapping[str, np.ndarray]) -> _Observed:
            checkpoint = source
            if changed is not tensors:
                prefix = os.path.join(folder, "model.ckpt")
                writing.save_checkpoint(prefix, changed)
                checkpoint = reading.Checkpoint(prefix)
            return _Observed(build, checkpoint, batches, calibrating.few_tokens(features))

        found = calibrating.calibrate(tensors, observe, chosen)
    output_dir = values.output_dir
    with atomic.staged_folder(output_dir) as stage:
        variables = dict(found.tensors) | calibrated.variables(found.amax)
        writing.write_checkpoint(stage / CHECKPOINT, variables)
        text = calibrated.csv_text(found.amax, found.counted)
        (stage / RANGES_CSV).write_text(text, encoding="utf-8")
    calibration_flags.print_ranges(found, chosen)
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


def _with_progress(batches: Sequence[_T], description: str) -> Iterator[_T]:
    return iter(tqdm.tqdm(batches, desc=description, unit="batch", file=sys.stderr))


def _with_point(point: point_encoder.Point) -> modeling.EncoderOptions:
    return modeling.EncoderOptions(use_tensorflow=True, taps=point_encoder.Taps(point))


class _Observed:
    """`calibrating.Observed` of a checkpoint's graph."""

    def __init__(
        self,
        build: Build,
        source: reading.Checkpoint,
        batches: Sequence[Mapping[str, np.ndarray]],
        few: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        self._build, self._source, self._batches, self._few = build, source, batches, few

    def centres(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `calibrating.Observed`."""
        recorder = collecting.Recorder()
        with self._model(recorder) as model, model.graph.as_default():
            collector = collecting.ChannelCollector(
                {name: recorder.tensors[name] for name in names}, model.inputs["input_mask"]
            )
            for batch in _with_progress(self._batches, "centring channels"):
                collector.run(model.session, layer_errors.feed_dict(model, batch))
        return collector.centres()

    def count(self) -> dict[str, histograms.Histogram]:
        """See `calibrating.Observed`."""
        recorder = collecting.Recorder()
        with self._model(recorder) as model, model.graph.as_default():
            collector = collecting.HistogramCollector(recorder.tensors, model.inputs["input_mask"])
            for batch in _with_progress(self._batches, "counting"):
                collector.run(model.session, layer_errors.feed_dict(model, batch))
        return collector.histograms

    def errors_of_layers(
        self, kernels: Sequence[Mapping[str, np.ndarray]], int8_mode: int
    ) -> layer_errors.LayerErrors:
        """See `calibrating.Observed`."""
        return layer_errors.LayerErrors(
            lambda encoder: self._build(self._source, encoder), kernels, int8_mode, self._few
        )

    def _model(self, point: point_encoder.Point) -> inference.Model:
        return self._build(self._source, _with_point(point))
