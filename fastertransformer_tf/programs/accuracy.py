"""Evaluates float and int8 checkpoints of a model side by side: accuracy_report."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import flags
from tqdm import tqdm

from fastertransformer_tf import __version__, google_bert, spec
from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.loading import library
from fastertransformer_tf.models import modeling
from fastertransformer_tf.programs import (
    accuracy_tables,
    accuracy_tasks,
    cli,
    path_flags,
    profiling,
)
from fastertransformer_tf.programs.accuracy_cells import (
    FLOAT,
    INT8_KINDS,
    INT8_MODES,
    Cache,
    Cell,
    Measurement,
    Row,
)
from fastertransformer_tf.training import settings

_OWNER = "fastertransformer_tf.accuracy_report"
_TASKS = ("mrpc", "squad")
_PADDING = (False, True)
_HOW = {
    "ptq": "calibrated and quantized",
    "qat": "trained for int8 by labels alone and quantized",
    "distilled": "trained for int8 with a teacher and quantized",
}


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string("output_dir", None, "The folder where report and measured cells are written.")
    define.string("mrpc_data", None, "The folder with MRPC's dev.tsv; without it MRPC is left out.")
    define.string("squad_data", None, "A file of SQuAD v1.1; without it SQuAD is left out.")
    for task, length in (("mrpc", 128), ("squad", 384)):
        define.string(f"{task}_model", None, "The folder with bert_config.json and vocab.txt.")
        define.string(
            f"{task}_float",
            None,
            f"The float checkpoint, its prefix or a folder; without it --{task}_model/model.ckpt.",
        )
        define.integer(f"{task}_max_seq_length", length, "Tokens of a sequence.", minimum=3)
        for kind in INT8_KINDS:
            for mode in INT8_MODES:
                define.several(
                    f"{task}_{kind}{mode}",
                    f"A checkpoint {_HOW[kind]}, to run with int8_mode {mode}. Given again, for "
                    "other seeds, the table has the mean.",
                )
    define.integer("squad_doc_stride", 128, "Tokens between the starts of windows.", minimum=1)
    define.integer("squad_max_query_length", 64, "Tokens of a question, at most.", minimum=1)
    define.boolean("do_lower_case", "Whether the vocabulary is of lower case.", default=True)
    define.integer("batch_size", 32, "Examples of a batch.", minimum=1)
    define.integer("most_examples", 0, "Only so many pairs and questions; 0 for all.", minimum=0)
    define.string(
        "float_types",
        ",".join(spec.FLOAT_TYPES),
        "Types that the float checkpoint is run in, commas between.",
    )
    define.enum(
        "int8_floatx", "float32", spec.FLOAT_TYPES, "Type of what is not int8 in int8 models."
    )


@dataclasses.dataclass
class Plan:
    """The checked command line.

    Attributes:
      output_dir: Where everything is written.
      batch_size: Examples of a batch.
      tasks: By name.
      cells: What is to be measured, in the order of the table.
      left_out: Why rows are missing, a sentence each.
      environment: What all results depend on, for JSON.
    """

    output_dir: pathlib.Path
    batch_size: int
    tasks: dict[str, accuracy_tasks.Task]
    cells: list[Cell]
    left_out: list[str]
    environment: dict[str, Any]


def prepare(values: flags.FlagValues) -> Plan:
    """Checks the command line, and opens everything that it names.

    Raises:
      UserError: A flag is missing or wrong, or a file is not as expected.
      OSError: A file is not there or cannot be read.
    """
    cli.require_flags(values, ["output_dir"])
    path_flags.check_paths(
        values, ["output_dir", *(f"{t}_{name}" for t in _TASKS for name in ("data", "model"))]
    )
    float_types = values.float_types.split(",")
    for floatx in float_types:
        if floatx not in spec.FLOAT_TYPES or float_types.count(floatx) > 1:
            raise UserError(
                f"--float_types={values.float_types}, expected different ones of "
                f"{', '.join(spec.FLOAT_TYPES)} with commas between"
            )
    tasks, left_out = {}, []
    for name in _TASKS:
        if values[f"{name}_data"].value:
            cli.require_flags(values, [f"{name}_model"])
            tasks[name] = _task(name, values)
        else:
            _refuse_without_data(name, values)
            left_out.append(f"{name}: without --{name}_data")
    if not tasks:
        raise UserError("nothing to do: give --mrpc_data or --squad_data")
    path_flags.make_output_dir(values.output_dir)
    environment = {
        "fastertransformer_tf": __version__,
        "library": settings.file_hash(library.library_path()),
        "tensorflow": tf.__version__,
        "devices": profiling.device_names(),
        "FT_CPU_ISA": os.environ.get("FT_CPU_ISA"),
        "batch_size": values.batch_size,
    }
    cells: list[Cell] = []
    for task in tasks.values():
        for mode, kind in [(0, FLOAT), *((m, k) for m in INT8_MODES for k in INT8_KINDS)]:
            paths = _checkpoints(task.name, kind, mode, values)
            if not paths:
                flag = f"--{task.name}_{kind}{mode}"
                left_out.append(f"{task.name}, {INT8_KINDS[kind]}, int8_mode {mode}: no {flag}")
            types = [values.int8_floatx] if mode else float_types
            rows = [Row(task.name, kind, mode, t, removed) for t in types for removed in _PADDING]
            cells += _cells(task, rows, paths, environment)
    return Plan(
        pathlib.Path(values.output_dir), values.batch_size, tasks, cells, left_out, environment
    )


def _refuse_without_data(name: str, values: flags.FlagValues) -> None:
    """Refuses flags of a task that is left out, which were given for nothing.

    Raises:
      UserError: Naming the first.
    """
    own = ["model", "float", *(f"{kind}{mode}" for kind in INT8_KINDS for mode in INT8_MODES)]
    for flag in own:
        if values[f"{name}_{flag}"].value:
            raise UserError(f"--{name}_{flag} needs --{name}_data")


def _task(name: str, values: flags.FlagValues) -> accuracy_tasks.Task:
    """Opens the files of a task; its messages begin with its name.

    Raises:
      UserError: One is not as expected.
    """
    folder = values[f"{name}_model"].value
    length = values[f"{name}_max_seq_length"].value
    model = (folder, values.do_lower_case, length, values.most_examples)
    try:
        if name == "mrpc":
            return accuracy_tasks.Mrpc(values.mrpc_data, *model)
        path_flags.require_file(values.squad_data, "squad_data")
        return accuracy_tasks.Squad(
            values.squad_data, values.squad_doc_stride, values.squad_max_query_length, *model
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _checkpoints(task: str, kind: str, mode: int, values: flags.FlagValues) -> list[str]:
    """The paths that flags name for a kind and mode."""
    if kind == FLOAT:
        return [
            getattr(values, f"{task}_float") or f"{getattr(values, f'{task}_model')}/model.ckpt"
        ]
    return list(getattr(values, f"{task}_{kind}{mode}"))


def _cells(
    task: accuracy_tasks.Task,
    rows: Sequence[Row],
    paths: Sequence[str],
    environment: dict[str, Any],
) -> list[Cell]:
    """Opens the checkpoints of some rows.

    Raises:
      OSError: There is none.
      UserError: One cannot be used.
    """
    sources = []
    for path in paths:
        source = reading.Checkpoint(path)
        task.check(source, rows[0].int8_mode)
        sources.append((source, f"sha256:{source.content_hash()[:16]}"))
    return [
        Cell(
            row,
            source,
            environment
            | {
                "row": dataclasses.asdict(row),
                "task": task.settings,
                "checkpoint": content,
                # On a GPU float32 may be TF32: another result, and another speed.
                "computed_in": profiling.precision(row.floatx),
            },
        )
        for row in rows
        for source, content in sources
    ]


def run(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the program with parsed flags.

    Returns:
      What accuracy_report.json holds.

    Raises:
      UserError: A flag or a file is missing or wrong; nothing is measured then. Or a checkpoint
        does not fit its model: what was measured before is kept.
      OSError: A file is not there or cannot be read.
    """
    with google_bert.bound_flags(values):
        plan = prepare(values)
        cache = Cache(plan.output_dir / "cells")
        results: list[Measurement] = []
        known = [cache.get(cell) for cell in plan.cells]
        done = sum(result is not None for result in known)
        if done:
            print(f"{done} of {len(known)} cells are measured already: {plan.output_dir}/cells")
        with tqdm(
            total=len(known), initial=done, desc="cells", unit="cell", file=sys.stderr
        ) as bar:
            for cell, result in zip(plan.cells, known, strict=True):
                if result is None:
                    bar.set_postfix_str(accuracy_tables.describe(cell.row))
                    result = _measure(plan, cell)
                    cache.put(cell, result)
                    bar.update()
                results.append(result)
        report = accuracy_tables.make_report(plan.tasks, plan.environment, plan.cells, results)
        report["left_out"] = plan.left_out
        accuracy_tables.write(report, plan.output_dir)
    return report


def _measure(plan: Plan, cell: Cell) -> Measurement:
    row = cell.row
    options = modeling.EncoderOptions(
        floatx=row.floatx, remove_padding=row.remove_padding, int8_mode=row.int8_mode
    )
    return plan.tasks[row.task].measure(cell.source, options, plan.batch_size)
