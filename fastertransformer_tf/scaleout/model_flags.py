"""Flags of a model that workers load."""

from __future__ import annotations

import os

from absl import flags

from fastertransformer_tf.programs import cli, model_flags, path_flags
from fastertransformer_tf.scaleout import scorers


def define_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of `scorers.ClassifierFactory`."""
    model_flags.define_encoder_flags(flag_values, owner)
    define = cli.FlagDefiner(flag_values, owner)
    define.string("init_checkpoint", None, "The classifier's checkpoint: its prefix, or a folder.")
    for name in ("bert_config_file", "vocab_file"):
        define.string(name, None, model_flags.MODEL_HELP[name])
    define.boolean("do_lower_case", "Whether the vocabulary is of lower case.", default=True)
    define.integer("max_seq_length", 128, "Longer texts are cut to so many tokens.", minimum=3)


def factory(values: flags.FlagValues) -> scorers.ClassifierFactory:
    """Makes the factory of parsed flags, checked.

    Raises:
      UserError: A flag is missing or wrong, or a file is not as expected.
      OSError: A file is not there.
    """
    from fastertransformer_tf.programs import checked_inputs  # Loads TensorFlow.

    path_flags.check_paths(values, ("init_checkpoint", "bert_config_file", "vocab_file"))
    cli.require_flags(values, ["init_checkpoint"])
    checked_inputs.complete_model_flags(values)
    # A worker's working directory is another.
    made = scorers.ClassifierFactory(
        checkpoint=os.path.abspath(values.init_checkpoint),
        config_file=os.path.abspath(values.bert_config_file),
        vocab_file=os.path.abspath(values.vocab_file),
        do_lower_case=values.do_lower_case,
        max_seq_length=values.max_seq_length,
        floatx=values.floatx,
        remove_padding=values.remove_padding,
        int8_mode=values.int8_mode,
        use_tensorflow=values.use_tensorflow_transformer,
    )
    made.check()
    return made
