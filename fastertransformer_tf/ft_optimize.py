"""Makes a model with BERT encoders fast: finds them in its graph and puts the op in their place.

Takes a SavedModel of TensorFlow 1 or 2, a frozen GraphDef or a checkpoint with its meta graph, and
writes the same kind of model. Every layer is checked before anything is replaced, and the result is
run against the source before it gets its name. What was done and what was left, layer by layer with
the reason, is printed and written to DESTINATION.optimize.json, the times also to
DESTINATION.optimize.png. The result loads with `import fastertransformer_tf`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from absl import flags

from fastertransformer_tf import spec
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import cli

if TYPE_CHECKING:
    from fastertransformer_tf.rewriting import reports

_OWNER = "fastertransformer_tf.ft_optimize"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string(
        "source",
        None,
        "The model: a SavedModel's folder, a frozen GraphDef's .pb file, or a checkpoint's prefix "
        "with its .meta file beside it.",
    )
    define.string(
        "destination",
        None,
        "Where the result goes: a new folder, or of a GraphDef a new file.",
    )
    define.enum("floatx", "float32", list(spec.FLOAT_TYPES), "The type that the op computes in.")
    define.boolean(
        "remove_padding",
        "Compute real tokens only, where the graph masks by token; rows of padding come out as 0.",
    )
    define.enum("int8_mode", "0", ["0", "1", "2", "3"], "Kernels of int8 (docs/int8.md); 0: off.")
    define.string(
        "ranges",
        None,
        "For --int8_mode: a checkpoint with the encoder's weights and their ranges, of "
        "ckpt_quantization or --do_calib. Without it the largest magnitudes that the samples show.",
    )
    define.string(
        "samples",
        None,
        "An .npz file with an array for each input: what source and result are run on, and INT8 is "
        "calibrated with. Without it token ids with padding are made up.",
    )
    define.string("signature", None, "The signature that --samples are for.")
    define.string(
        "outputs",
        None,
        "Of a GraphDef or checkpoint: names of the tensors that are fetched, with commas between "
        "them. Without it what no other node uses.",
    )
    define.boolean(
        "all_functions",
        "Replace encoders also in functions that no signature runs, such as Keras' own; those are "
        "checked layer by layer, but not run as a whole.",
    )
    define.boolean(
        "assume_real_tokens",
        "Every sequence has at least one token that is not masked: needed for Keras 3's attention, "
        "which gives others a context of 0.",
    )


def run(values: flags.FlagValues) -> reports.Report:
    """Runs the program with parsed flags; see `rewriting.optimizer.optimize`."""
    cli.require_flags(values, ("source", "destination"))
    if values.ranges and values.int8_mode == "0":
        raise UserError("--ranges is of INT8, but --int8_mode=0: leave it out, or give a mode")
    from fastertransformer_tf.rewriting import optimizer  # With TensorFlow: not for --help.

    report = optimizer.optimize(
        values.source,
        values.destination,
        floatx=values.floatx,
        remove_padding=values.remove_padding,
        int8_mode=int(values.int8_mode),
        ranges=values.ranges,
        sample_inputs=values.samples,
        signature=values.signature,
        outputs=[name for name in (values.outputs or "").split(",") if name],
        all_functions=values.all_functions,
        assume_real_tokens=values.assume_real_tokens,
        progress=_progress,
    )
    print("\n".join(report.lines()))
    print(f"written: {values.destination}, report: {values.destination}.optimize.json")
    return report


def _progress(items: Iterable[Any], text: str) -> Iterable[Any]:
    """Shows a bar on stderr."""
    import tqdm  # Here, where that it is missing is told in one line.

    return tqdm.tqdm(items, desc=text, unit="layer", file=sys.stderr)


def main() -> None:
    """The console entry point."""
    cli.run_flag_program(define_flags, run, __doc__, [_OWNER])


if __name__ == "__main__":
    main()
