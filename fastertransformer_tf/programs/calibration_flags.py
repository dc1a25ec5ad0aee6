"""The flags of calibration, and the table that ends it. Free of TensorFlow."""

from __future__ import annotations

import rich.box
import rich.console
import rich.table
from absl import flags

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import cli
from fastertransformer_tf.quantization import calibrating, points, range_search, ranges

CHECKPOINT = "model.ckpt-calibrated"
RANGES_CSV = "calibrated_ranges.csv"


def define_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of how ranges are calibrated.

    Args:
      flag_values: Where to define them.
      owner: Name of the program's module, under which --help finds them.
    """
    define = cli.FlagDefiner(flag_values, owner)
    define.integer("calib_batch", 4, "Batches of --train_batch_size to calibrate on.", minimum=1)
    define.enum(
        "calib_method",
        calibrating.BY_ERROR,
        calibrating.METHODS,
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


def options(values: flags.FlagValues) -> calibrating.CalibrationOptions:
    """Makes the options of parsed flags.

    Raises:
      UserError: Flags that do not go together.
    """
    if values.per_tensor_kernels and values.quant_mode == "ft1":
        raise UserError("--per_tensor_kernels is of ft2 and ft3, but --quant_mode=ft1")
    return calibrating.CalibrationOptions(
        method=values.calib_method,
        percentile=values.percentile,
        quant_mode=values.quant_mode,
        fold_shift=values.fold_shift,
        kernels_by_column=not values.per_tensor_kernels,
    )


def print_ranges(found: calibrating.Calibration, chosen: calibrating.CalibrationOptions) -> None:
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
    for layer in range(ranges.model_sizes(found.tensors).layers):
        row = [found.amax[points.full_name(layer, points.BY_SLOT[slot].scope)] for slot in slots]
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
