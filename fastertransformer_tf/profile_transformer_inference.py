"""Times TensorFlow's own BERT encoder against the op on random input; writes a table and a plot.

The encoder is that of --bert_config_file, or of the sizes given, with random weights; or that of
--init_checkpoint, whose configuration is --bert_config_file or the bert_config.json beside it: a
checkpoint alone says neither activation nor heads nor epsilon.

The two outputs are compared first; where they disagree nothing is reported. With --remove_padding
half of each sequence is padding, which the op leaves out. --tf_profile writes chrome traces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from fastertransformer_tf.programs import cli, model_flags

if TYPE_CHECKING:
    import numpy as np

_OWNER = "fastertransformer_tf.profile_transformer_inference"
_INPUT_SIZES = {
    "predict_batch_size": (8, "Sequences in a batch, B."),
    "max_seq_length": (128, "Padded length, S."),
}
_ENCODER_SIZES = {
    "num_hidden_layers": (12, "Layers of the encoder; with a configuration, its own."),
    "num_attention_heads": (12, "Attention heads; with a configuration, its own."),
    "attention_head_size": (64, "Size of a head; with a configuration, its own."),
}


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    model_flags.define_encoder_flags(flag_values, _OWNER)
    model_flags.define_profile_flags(flag_values, _OWNER)
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string("output_dir", None, "The folder where table, plot and traces are written.")
    define.string(
        "init_checkpoint", None, "Checkpoint whose encoder is run; random weights without it."
    )
    define.string(
        "bert_config_file",
        None,
        "Configuration of the encoder; default: bert_config.json beside --init_checkpoint, and "
        "google's BERT of the sizes given without a checkpoint.",
    )
    for name, (default, text) in (_INPUT_SIZES | _ENCODER_SIZES).items():
        define.integer(name, default, text, minimum=1)


def run(values: flags.FlagValues) -> list[np.ndarray]:
    """Runs the program with parsed flags; see `profile_encoder.run`."""
    from fastertransformer_tf.programs import profile_encoder  # With TensorFlow: not for --help.

    return profile_encoder.run(values)


def main() -> None:
    """The console entry point."""
    cli.run_flag_program(define_flags, run, __doc__, [_OWNER])


if __name__ == "__main__":
    main()
