"""Converts the float32 and float64 variables of a BERT checkpoint to float16 or bfloat16.

What keeps its type: quantizer ranges (names with `quant`), scale lists (`amaxList`), what an
optimizer keeps beside a weight (`W/adam_v` beside `W`: its squares would become 0 in float16), and
variables of another type: those that are converted already, and the int8 kernels that
ckpt_quantization makes. The new checkpoint appears only when it is complete. The runners take it as
it is; they also convert a float32 checkpoint while loading, so this program only halves the file.
"""

from __future__ import annotations

from absl import flags

from fastertransformer_tf import spec
from fastertransformer_tf.programs import cli

_OWNER = "fastertransformer_tf.ckpt_type_convert"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string("init_checkpoint", None, "The checkpoint to read: its prefix, or a folder.")
    define.string("fp16_checkpoint", None, "Prefix of the checkpoint to write.")
    define.enum("dtype", "float16", spec.HALF_TYPES, "Type that float32 and float64 variables get.")
    define.boolean(
        "allow_overflow",
        "Clip values beyond the type's largest to it; otherwise they are reported by name and "
        "nothing is written.",
    )


def run(values: flags.FlagValues) -> list[tuple[str, str, str]]:
    """Runs the program with parsed flags; see `type_conversion.convert_checkpoint`."""
    from fastertransformer_tf.checkpoints import type_conversion  # With TensorFlow: not for --help.

    cli.require_flags(values, ("init_checkpoint", "fp16_checkpoint"))
    rows = type_conversion.convert_checkpoint(
        values.init_checkpoint,
        values.fp16_checkpoint,
        values.dtype,
        allow_overflow=values.allow_overflow,
    )
    for name, old, new in rows:
        print(f"{name} from {old} to {new}")
    changed = sum(old != new for _, old, new in rows)
    print(f"{changed} of {len(rows)} variables converted: {values.fp16_checkpoint}")
    return rows


def main() -> None:
    """The console entry point."""
    cli.run_flag_program(define_flags, run, __doc__, [_OWNER])


if __name__ == "__main__":
    main()
