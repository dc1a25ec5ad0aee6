"""What profile_transformer_inference and profile_bert_inference share: comparing, timing, files."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags
from tensorflow.python.client import timeline  # the only way to a chrome trace of a session's run
from tqdm import tqdm

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic
from fastertransformer_tf.models import modeling
from fastertransformer_tf.programs import checked_inputs, cli, reports

_tf1 = tf.compat.v1
# Largest ||op - TensorFlow|| / ||TensorFlow||. float16, bfloat16 and TF32 round both sides.
# int8 is compared with int8 simulated in TensorFlow: single integers may be another.
TOLERANCE = {"float32": 1e-4, "TF32": 1e-2, "float16": 1e-2, "bfloat16": 6e-2, "int8": 0.15,
             "float8": 0.2}  # fmt: skip


@dataclasses.dataclass
class Side:
    """One of the two programs compared.

    Attributes:
      session: A tf.compat.v1.Session that holds its graph.
      output: What is compared, [B,...].
      timed: What is fetched while timing: small, so that copying it does not count.
      feeds: Placeholder to value, for each batch.
      trace_name: First part of the names of its trace files.
    """

    session: Any
    output: tf.Tensor
    timed: tf.Tensor
    feeds: Sequence[Mapping[tf.Tensor, np.ndarray]]
    trace_name: str


def check_flags(values: flags.FlagValues) -> modeling.EncoderOptions:
    """Checks the flags that both programs have.

    Returns:
      How the op's side is built.

    Raises:
      UserError: One is missing, or does not go with another.
    """
    cli.require_flags(values, ("output_dir", "profiling_output_file"))
    if values.use_tensorflow_transformer:
        raise UserError("--use_tensorflow_transformer: this program always runs both, leave it out")
    name = values.profiling_output_file
    if name != os.path.basename(name) or name in ("", ".", "..") or name.endswith(".png"):
        raise UserError(
            f"--profiling_output_file={name}, expected the name of a file in --output_dir, such as "
            "table.tsv; the plot gets the same name with .png"
        )
    return checked_inputs.encoder_options(values)


def precision(floatx: str) -> str:
    """Names what products are computed in: `floatx`, or TF32 where a GPU takes it for float32.

    TensorFlow allows TF32 unless tf.config.experimental.enable_tensor_float_32_execution(False) or,
    for the libraries, NVIDIA_TF32_OVERRIDE=0 says otherwise.
    """
    allowed = (
        floatx == "float32"
        and bool(tf.config.list_physical_devices("GPU"))
        and tf.config.experimental.tensor_float_32_execution_enabled()
        and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
    )
    return "TF32" if allowed else floatx


def check_agreement(
    expected: np.ndarray, actual: np.ndarray, floatx: str, int8_mode: int = 0, fp8_mode: int = 0
) -> float:
    """Returns the relative error of `actual`; with int8_mode `expected` was simulated.

    Raises:
      UserError: It is above TOLERANCE, or not a number.
    """
    norm = np.linalg.norm(expected.astype(np.float64))
    error = float(np.linalg.norm(actual.astype(np.float64) - expected) / norm)
    computed_in = "int8" if int8_mode else "float8" if fp8_mode else precision(floatx)
    tolerance = TOLERANCE[computed_in]
    if not error <= tolerance:
        raise UserError(
            f"the op's output differs from TensorFlow's: relative error {error:.3g}, largest "
            f"difference {np.abs(actual - expected).max():.3g}, expected a relative error of at "
            f"most {tolerance} in {computed_in}: no time is reported"
        )
    return error


def compare(
    values: flags.FlagValues,
    sides: Sequence[Side],
    columns: Mapping[str, int],
    simulated: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Compares outputs, then times, traces and reports; closes the sessions.

    Args:
      values: The program's flags.
      sides: TensorFlow's and the op's, with the same batches.
      columns: Column name to value of the table: batch_size, seq_length, hidden_layers, ...
      simulated: What the op's outputs are to be, where TensorFlow's side computes in other numbers.

    Returns:
      Seconds of TensorFlow's runs and of the op's, [num_iter] each.

    Raises:
      UserError: The outputs disagree; no file is written and no time told.
    """
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.callback(side.session.close)
        expected, actual = (
            np.concatenate([side.session.run(side.output, feeds) for feeds in side.feeds])
            for side in sides
        )
        if simulated is not None:
            expected = simulated
        error = check_agreement(expected, actual, values.floatx, values.int8_mode, values.fp8_mode)
        seconds = time_in_turn(sides, values.num_iter)
        if values.tf_profile:
            write_traces(sides, values.output_dir, values.num_iter)
    report(values, columns, seconds, error)
    return seconds


def time_in_turn(sides: Sequence[Side], num_iter: int) -> list[np.ndarray]:
    """Times the sides in turn, now this one first and now that, so that drift hits them alike.

    Args:
      sides: What to time; each runs once before.
      num_iter: Timed runs of each, over its batches in order.

    Returns:
      Seconds of each run, [num_iter], for each side.
    """
    calls = []
    for side in sides:
        keys = list(side.feeds[0])
        call = side.session.make_callable(side.timed, keys)
        batches = [[feeds[key] for key in keys] for feeds in side.feeds]
        call(*batches[0])
        calls.append((call, batches))
    seconds = np.zeros((len(sides), num_iter))
    for turn in tqdm(range(num_iter), "timing", leave=False):
        for index in range(len(calls)) if turn % 2 else reversed(range(len(calls))):
            call, batches = calls[index]
            batch = batches[turn % len(batches)]
            start = time.perf_counter()
            call(*batch)
            seconds[index, turn] = time.perf_counter() - start
    return list(seconds)


def write_traces(sides: Sequence[Side], output_dir: str, num_iter: int) -> list[pathlib.Path]:
    """Writes a chrome trace of each run to output_dir/prof/<trace_name>_<n>.json."""
    paths = []
    folder = pathlib.Path(output_dir) / "prof"
    folder.mkdir(parents=True, exist_ok=True)
    for side in sides:
        for turn in tqdm(range(num_iter), f"{side.trace_name}: tracing", leave=False):
            metadata = _tf1.RunMetadata()
            side.session.run(
                side.timed,
                side.feeds[turn % len(side.feeds)],
                options=_tf1.RunOptions(trace_level=_tf1.RunOptions.FULL_TRACE),
                run_metadata=metadata,
            )
            trace = timeline.Timeline(metadata.step_stats).generate_chrome_trace_format()
            paths.append(folder / f"{side.trace_name}_{turn}.json")
            atomic.write_text(paths[-1], trace)
    return paths


def device_names() -> list[str]:
    """Describes the GPUs, or the CPU where there is none."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return [d.get("device_name", gpu.name) for d, gpu in zip(details, gpus, strict=True)]
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor()
    return [f"{model}, {len(os.sched_getaffinity(0))} CPUs"]


def report(
    values: flags.FlagValues,
    sizes: Mapping[str, int],
    seconds: Sequence[np.ndarray],
    error: float,
) -> None:
    """Prints the two times and writes the table (tab separated) and a plot beside it.

    Args:
      values: The program's flags.
      sizes: Column name to value: batch_size, seq_length, hidden_layers, ...
      seconds: Of TensorFlow's runs and of the op's.
      error: The op's relative error.
    """
    original, fast = (float(times.mean()) for times in seconds)
    print(f"outputs agree: relative error {error:.2e}")
    print(f"average time (seconds) elapsed original tensorflow: {original:.6g}")
    print(f"average time (seconds) elapsed fast transformer: {fast:.6g}")
    columns = [*sizes, "Tensorflow", "FasterTransformer"]
    row = [*sizes.values(), f"{original:.6g}", f"{fast:.6g}"]
    transformer = f"BertEncoder op, padding {'removed' if values.remove_padding else 'computed'}"
    computed_in, devices = precision(values.floatx), device_names()
    reports.print_table(
        f"{computed_in}, {'with' if values.xla else 'without'} XLA, {devices[0]}",
        {
            **sizes,
            "TensorFlow's own transformer, ms": f"{original * 1e3:.2f}",
            f"{transformer}, ms": f"{fast * 1e3:.2f}",
            "speed-up": f"{original / fast:.2f}x",
        },
        f"means of {len(seconds[0])} batches, both in turn; medians in the plot",
    )
    lines = [
        *devices,
        f"{computed_in}\tXLA: {values.xla}\tremove_padding: {values.remove_padding}",
        "\t".join(columns),
        "\t".join(map(str, row)),
    ]
    path = pathlib.Path(values.output_dir) / values.profiling_output_file
    atomic.write_text(path, "\n".join(lines) + "\n")
    plot = path.with_suffix(".png")
    _plot(plot, seconds, f"{computed_in}, {devices[0]}")
    print(f"written: {path}, {plot}")


def _plot(path: pathlib.Path, seconds: Sequence[np.ndarray], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 4), layout="constrained")
    names = ["TensorFlow", "fast transformer"]
    medians = [1e3 * float(np.median(times)) for times in seconds]
    bars = axis.bar(names, medians, color=["tab:gray", "tab:green"])
    axis.bar_label(bars, fmt="%.2f")
    axis.set_ylabel("ms per batch, median")
    axis.set_title(title, fontsize=9)
    with atomic.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
