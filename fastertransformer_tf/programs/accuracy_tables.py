"""The files of accuracy_report: JSON, the table in Markdown and the plot."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from fastertransformer_tf.files import atomic
from fastertransformer_tf.programs import accuracy_tasks, reports
from fastertransformer_tf.programs.accuracy_cells import FLOAT, INT8_KINDS, Cell, Measurement, Row

NAME = "accuracy_report"
_MIB = 2**20
_COLORS = {FLOAT: "tab:gray", "ptq": "tab:orange", "qat": "tab:blue", "distilled": "tab:green"}
_NOTE = (
    "Evaluated by the op. Several checkpoints of one row: the mean, and from the lowest to the "
    "highest. examples/s: pairs, or windows of paragraphs, in one pass; {times}."
    " MiB: the model's variables in the types that they are run in."
)


def describe(row: Row) -> str:
    """Says in a few words which model a row is, e.g. `squad PTQ int8_mode 2, padding removed`."""
    model = row.floatx if row.kind == FLOAT else f"{INT8_KINDS[row.kind]} int8_mode {row.int8_mode}"
    return f"{row.task} {model}, padding {'removed' if row.remove_padding else 'computed'}"


def make_report(
    tasks: Mapping[str, accuracy_tasks.Task],
    environment: Mapping[str, Any],
    cells: Sequence[Cell],
    results: Sequence[Measurement],
) -> dict[str, Any]:
    """Puts together what accuracy_report.json holds.

    Args:
      tasks: By name.
      environment: Versions, devices and batch size.
      cells: In the order of the table, those of one row after each other.
      results: One a cell.

    Returns:
      `environment`, `written`, `tasks` (title, metrics and settings by name) and `rows`: those of
      `Row` with `computed_in`, the means of metrics and speed, and `cells` with each checkpoint's
      path, content and measurement.
    """
    rows = []
    pairs = zip(cells, results, strict=True)
    for row, group in itertools.groupby(pairs, key=lambda pair: pair[0].row):
        members = list(group)
        found = [result for _, result in members]
        first = members[0][0]
        rows.append(
            dataclasses.asdict(row)
            | {
                "computed_in": first.determined_by["computed_in"],
                "metrics": {
                    name: statistics.fmean(result.metrics[name] for result in found)
                    for name in tasks[row.task].metrics
                },
                "examples_per_second": statistics.fmean(r.examples_per_second for r in found),
                "checkpoint_bytes": found[0].checkpoint_bytes,
                "cells": [
                    {"path": cell.source.path, "content": cell.determined_by["checkpoint"]}
                    | dataclasses.asdict(result)
                    for cell, result in members
                ],
            }
        )
    return {
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": dict(environment),
        "tasks": {
            name: {"title": task.title, "metrics": dict(task.metrics), "settings": task.settings}
            for name, task in tasks.items()
        },
        "rows": rows,
    }


def write(report: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes accuracy_report.json, .md and .png, each whole, and prints the table."""
    table = markdown(report)
    atomic.write_text(folder / f"{NAME}.json", json.dumps(report, indent=1) + "\n")
    atomic.write_text(folder / f"{NAME}.md", table)
    _plot(report, folder / f"{NAME}.png")
    print(table)
    print(f"written: {', '.join(str(folder / f'{NAME}.{end}') for end in ('json', 'md', 'png'))}")


def markdown(report: Mapping[str, Any]) -> str:
    """Makes the tables, one a task, and what they leave out."""
    environment = report["environment"]
    lines = [
        "# Accuracy, speed and size of float and int8 models",
        "",
        f"{report['written']}, {', '.join(environment['devices'])}, TensorFlow "
        f"{environment['tensorflow']}, fastertransformer_tf {environment['fastertransformer_tf']} "
        f"(library {environment['library']}), batches of {environment['batch_size']}.",
        "",
        _NOTE.format(times=reports.TIMING_CAPTION.partition(": ")[2]),
    ]
    for name, task in report["tasks"].items():
        rows = [row for row in report["rows"] if row["task"] == name]
        header = ["model", "int8_mode", "type", "padding", *task["metrics"].values()]
        header += ["examples/s", "MiB"]
        lines += ["", f"## {task['title']}", "", _line(header), _line(["---"] * len(header))]
        lines += [_line(_texts(row, task["metrics"])) for row in rows]
    if report.get("left_out"):
        lines += ["", f"Left out: {'; '.join(report['left_out'])}."]
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _texts(row: Mapping[str, Any], metrics: Mapping[str, str]) -> list[str]:
    """The texts of a line of the table."""
    return [
        _model(row),
        str(row["int8_mode"] or "-"),
        row["computed_in"],
        "removed" if row["remove_padding"] else "computed",
        *(_metric(row, name) for name in metrics),
        f"{row['examples_per_second']:.1f}",
        f"{row['checkpoint_bytes'] / _MIB:.1f}",
    ]


def _model(row: Mapping[str, Any]) -> str:
    return INT8_KINDS.get(row["kind"], FLOAT)


def _metric(row: Mapping[str, Any], name: str) -> str:
    """A metric, and of several checkpoints how far apart they are."""
    values = [cell["metrics"][name] for cell in row["cells"]]
    # Percent has two digits after the point, as the scores of SQuAD are told, a fraction four.
    digits = 2 if row["task"] == "squad" else 4
    text = f"{row['metrics'][name]:.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f}, {len(values)})"


def _plot(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws the first metric, the speed and the size of every row, a line of panels a task."""
    tasks = report["tasks"]
    rows = {name: [row for row in report["rows"] if row["task"] == name] for name in tasks}
    heights = [1.2 + 0.28 * len(group) for group in rows.values()]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    panels = figure.subplots(len(tasks), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (name, task), (score, speed, size) in zip(tasks.items(), panels, strict=True):
        group = rows[name]
        metric, label = next(iter(task["metrics"].items()))
        digits = 2 if name == "squad" else 4
        _bars(score, group, [row["metrics"][metric] for row in group], f"%.{digits}f")
        for place, row in enumerate(group):
            seeds = [cell["metrics"][metric] for cell in row["cells"]]
            score.plot(seeds, [place] * len(seeds), "k|", markersize=9)
        values = [cell["metrics"][metric] for row in group for cell in row["cells"]]
        margin = max(0.6 * (max(values) - min(values)), 0.01 * max(values), 1e-3)
        # Differences are small beside the values: the axis does not begin at 0, and says so.
        score.set_xlim(min(values) - margin, max(values) + margin)
        score.set_xlabel(f"{label} (axis cut)")
        score.set_yticks(range(len(group)), [_label(row) for row in group], fontsize=8)
        score.set_title(task["title"], fontsize=9, loc="left")
        _bars(speed, group, [row["examples_per_second"] for row in group], "%.0f")
        speed.set_xlabel("examples/s")
        _bars(size, group, [row["checkpoint_bytes"] / _MIB for row in group], "%.1f")
        size.set_xlabel("MiB")
        for panel in (speed, size):
            panel.set_yticks([])
            panel.margins(x=0.15)
    with atomic.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _bars(
    panel: Any, rows: Sequence[Mapping[str, Any]], values: Sequence[float], form: str
) -> None:
    """Draws a bar for each row, from the top; those with padding removed are hatched."""
    bars = panel.barh(
        range(len(rows)),
        values,
        color=[_COLORS[row["kind"]] for row in rows],
        hatch=["//" if row["remove_padding"] else "" for row in rows],
        edgecolor="white",
    )
    panel.bar_label(bars, fmt=form, fontsize=7, padding=2)
    panel.invert_yaxis()


def _label(row: Mapping[str, Any]) -> str:
    mode = f", mode {row['int8_mode']}" if row["int8_mode"] else ""
    kind = row["computed_in"] if row["kind"] == FLOAT else _model(row)
    return f"{kind}{mode}, padding {'removed' if row['remove_padding'] else 'computed'}"
