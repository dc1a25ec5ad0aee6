"""Quantizes a BERT checkpoint that holds calibrated ranges to int8.

The ranges are the variables `.../quant_max` and `.../quant_min` that --do_calib of the runners,
or the FasterTransformer 4.0 quantization tools, leave in a checkpoint of any float type. The six
kernels of every layer become int8, each layer gets a scale list (`amaxList`), the ranges are left
out and all other variables stay as they are. One file serves every CPU and GPU. It appears only
when it is complete.
"""

from __future__ import annotations

from absl import flags

from fastertransformer_tf.programs import cli

_OWNER = "fastertransformer_tf.ckpt_quantization"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string("init_checkpoint", None, "The checkpoint to read: its prefix, or a folder.")
    define.string("quantized_checkpoint", None, "Prefix of the checkpoint to write.")
    define.integer(
        "int8_mode",
        1,
        "The mode that the ranges were calibrated for: 1, 2 or 3. Kernels are quantized by column "
        "wherever the checkpoint has a range for each.",
    )


def run(values: flags.FlagValues) -> None:
    """Runs the program with parsed flags; see `conversion.quantize_checkpoint`."""
    from fastertransformer_tf.quantization import conversion  # With TensorFlow: not for --help.

    cli.require_flags(values, ("init_checkpoint", "quantized_checkpoint"))
    sizes = conversion.quantize_checkpoint(
        values.init_checkpoint, values.quantized_checkpoint, values.int8_mode
    )
    print(
        f"{sizes.layers} layers of hidden size {sizes.hidden} quantized for int8_mode "
        f"{values.int8_mode}: {values.quantized_checkpoint}"
    )


def main() -> None:
    """The console entry point."""
    cli.run_flag_program(define_flags, run, __doc__, [_OWNER])


if __name__ == "__main__":
    main()
