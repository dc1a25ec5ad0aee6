"""Flags that the programs which run a model share. Free of TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable

from absl import flags

from fastertransformer_tf import spec
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import cli

_NO_EFFECT = "No effect: kept so that google's command lines, made for TPUs, are understood."
TPU_HELP = {
    "use_tpu": "Must be false: kept so that google's command lines are understood.",
    "tpu_name": _NO_EFFECT,
    "tpu_zone": _NO_EFFECT,
    "gcp_project": _NO_EFFECT,
    "master": _NO_EFFECT,
    "num_tpu_cores": _NO_EFFECT,
    "iterations_per_loop": _NO_EFFECT,
}
MODEL_HELP = {
    "init_checkpoint": "Checkpoint to start from (--do_train), or to run where --output_dir has "
    "none of a training: its prefix, or a folder, which means the latest by its file `checkpoint` "
    "or the only one in it.",
    "bert_config_file": "Configuration of the model; default: bert_config.json beside "
    "--init_checkpoint.",
    "vocab_file": "Vocabulary of the model; default: vocab.txt beside --init_checkpoint.",
}


def define_encoder_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of `EncoderOptions`.

    Args:
      flag_values: Where to define them.
      owner: Name of the program's module, under which --help finds them.
    """
    define = cli.FlagDefiner(flag_values, owner)
    define.enum("floatx", "float32", spec.FLOAT_TYPES, "Type of weights and activations.")
    define.boolean("remove_padding", "Compute only real tokens.")
    define.boolean("allow_gemm_test", "GPU: search the fastest GEMM algorithm for each new shape.")
    define.boolean(
        "use_tensorflow_transformer",
        "Run TensorFlow's own transformer instead of the op, for comparison.",
    )
    define.integer(
        "int8_mode",
        0,
        "0 off; 1, 2 or 3 (which is 2): run a checkpoint of ckpt_quantization with int8 kernels.",
    )
    define.integer(
        "fp8_mode",
        0,
        "0 off; 1: run a checkpoint of ckpt_quantization by float8 products, on a GPU of compute "
        "capability 8.9 or later.",
    )


def define_export_flag(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines --export_dir."""
    cli.FlagDefiner(flag_values, owner).string(
        "export_dir",
        None,
        "Also write the model, weights inside, as a SavedModel to this new folder. To serve it: "
        "import fastertransformer_tf, then tf.saved_model.load.",
    )


def require_positive(flag_values: flags.FlagValues, names: Iterable[str]) -> None:
    """Refuses batch sizes and the like that are below 1.

    Raises:
      UserError: Naming the first.
    """
    for name in names:
        if getattr(flag_values, name) < 1:
            raise UserError(f"--{name}={getattr(flag_values, name)}, expected at least 1")


def define_profile_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of the programs that compare the op with TensorFlow.

    Args:
      flag_values: Where to define them.
      owner: Name of the program's module, under which --help finds them.
    """
    define = cli.FlagDefiner(flag_values, owner)
    define.string("profiling_output_file", None, "The table's file, in --output_dir.")
    define.boolean("xla", "Compile with XLA, both sides.")
    define.boolean(
        "tf_profile",
        "Write chrome traces to --output_dir/prof: open them with Perfetto or chrome://tracing.",
    )
    define.integer("num_iter", 20, "Timed batches of each side.", minimum=1)
