"""The tables that programs print. Free of TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import rich.box
import rich.console
import rich.table

from fastertransformer_tf.programs.batch_runs import BatchRun

if TYPE_CHECKING:
    from fastertransformer_tf.models import modeling


def print_table(title: str, rows: Mapping[str, object], caption: str | None = None) -> None:
    """Prints a two-column table on stdout."""
    table = rich.table.Table(
        title=title,
        caption=caption,
        box=rich.box.SIMPLE_HEAD,
        show_header=False,
        title_justify="left",
    )
    table.add_column("name")
    table.add_column("value", justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    rich.console.Console().print(table)


def report(
    title: str,
    encoder: str,
    results: Mapping[str, object],
    run: BatchRun,
    batch_size: int,
) -> None:
    """Prints the table that ends a run over data: which encoder, its results and its speed."""
    rows: dict[str, object] = {"encoder": encoder, **results}
    rows |= {
        "examples": run.num_examples,
        "batch size": batch_size,
        "examples/s": f"{run.examples_per_second:.1f}",
        "ms per batch (median)": f"{run.ms_per_batch:.2f}",
    }
    print_table(title, rows, TIMING_CAPTION)


TIMING_CAPTION = (
    "times: calls of the model alone, after one warm-up batch; no building, no tokenizing"
)


def encoder_name(options: modeling.EncoderOptions) -> str:
    """Says in a few words which transformer ran."""
    if options.taps is not None:
        return f"INT8 simulated in TensorFlow, {options.floatx}"
    if options.use_tensorflow:
        return f"TensorFlow's own transformer, {options.floatx}"
    padding = "padding removed" if options.remove_padding else "with padding"
    mode = f"int8_mode {options.int8_mode}, " if options.int8_mode else ""
    mode = f"fp8_mode {options.fp8_mode}, " if options.fp8_mode else mode
    return f"BertEncoder op, {mode}{options.floatx}, {padding}"
