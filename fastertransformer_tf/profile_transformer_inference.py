"""Times TensorFlow's own BERT encoder against the op on random input; writes a table and a plot.

The encoder is that of --bert_config_file, or of the sizes given, with random weights; or that of
--init_checkpoint, whose configuration is --bert_config_file or the bert_config.json beside it: a
checkpoint alone says neither activation nor heads nor epsilon.

The two outputs are compared first; where they disagree nothing is reported. With --remove_padding
half of each sequence is padding, which the op leaves out. --tf_profile writes chrome traces.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

from fastertransformer_tf.checkpoints import checkpoint
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import encoder_graphs, modeling
from fastertransformer_tf.programs import cli as cli_lib
from fastertransformer_tf.programs import profile_util, runner

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
_CONFIG_NAME = "bert_config.json"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    runner.define_encoder_flags(flag_values, _OWNER)
    profile_util.define_flags(flag_values, _OWNER)
    define = cli_lib.FlagDefiner(flag_values, _OWNER)
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


def encoder_sizes(values: flags.FlagValues) -> encoder_graphs.EncoderSizes:
    """Finds out which encoder the flags mean.

    Returns:
      That of the configuration, or, without one, google's BERT of the sizes given.

    Raises:
      FileNotFoundError: There is no such configuration.
      UserError: It is no BERT configuration, a flag contradicts it, or a checkpoint has none.
    """
    path = values.bert_config_file
    if path is None and values.init_checkpoint:
        path = _config_beside(values.init_checkpoint)
    if path is None:
        heads, size = values.num_attention_heads, values.attention_head_size
        return encoder_graphs.EncoderSizes(values.num_hidden_layers, heads, size, 4 * heads * size)
    config = runner.load_config(path, 1)  # No position embeddings here: any length will do.
    try:
        modeling.op_activation(config.hidden_act)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    heads = config.num_attention_heads
    if config.hidden_size % heads:
        raise UserError(
            f"{path}: hidden_size is {config.hidden_size}, expected a multiple of "
            f"num_attention_heads {heads}"
        )
    sizes = encoder_graphs.EncoderSizes(
        config.num_hidden_layers,
        heads,
        config.hidden_size // heads,
        config.intermediate_size,
        hidden_act=config.hidden_act,
        layer_norm_eps=getattr(config, "layer_norm_eps", 1e-12),
    )
    for name, value in zip(_ENCODER_SIZES, (sizes.layers, sizes.heads, sizes.size), strict=True):
        if values[name].present and values[name].value != value:
            raise UserError(
                f"--{name}={values[name].value}, expected {value} of {path}, or no such flag"
            )
    return sizes


def _config_beside(init_checkpoint: str) -> str:
    """Finds the configuration beside a checkpoint.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      UserError: There is no configuration beside it.
    """
    prefix = Path(checkpoint.Checkpoint(init_checkpoint).path)
    path = prefix.with_name(_CONFIG_NAME)
    if not path.is_file():
        raise UserError(
            f"--init_checkpoint={init_checkpoint} has no {_CONFIG_NAME} beside it: give "
            "--bert_config_file, since activation, heads and epsilon are not in a checkpoint"
        )
    return str(path)


def make_side(
    values: flags.FlagValues,
    use_tensorflow: bool,
    sizes: encoder_graphs.EncoderSizes,
    weights: encoder_graphs.Weights,
    feeds: tuple[np.ndarray, np.ndarray],
) -> profile_util.Side:
    """Builds one side.

    Args:
      values: The program's flags.
      use_tensorflow: TensorFlow's own transformer, else the op.
      sizes: Of the encoder.
      weights: Of the encoder.
      feeds: Hidden states float32 [B,S,H] and lengths int32 [B], all the same, above 0.

    Returns:
      A side with the output [B,length,H], float32: what either side says of padding is left out.
    """
    with tf.Graph().as_default() as graph:
        hidden = tf.placeholder(tf.float32, feeds[0].shape, "hidden")
        lengths = tf.placeholder(tf.int32, feeds[1].shape, "lengths")
        states = tf.cast(hidden, tf.as_dtype(values.floatx))
        arrays = encoder_graphs.HeldArrays(states.dtype)
        held = arrays.hold_weights(weights)
        if use_tensorflow:
            states = encoder_graphs.tensorflow_encoder(states, lengths, sizes, held)
        else:
            states = encoder_graphs.op_encoder(
                states,
                lengths,
                sizes,
                held,
                remove_padding=values.remove_padding,
                int8_mode=values.int8_mode,
                allow_gemm_test=values.allow_gemm_test,
            )
        output = tf.cast(states, tf.float32)
        session = tf.Session(graph=graph, config=encoder_graphs.session_config(values.xla))
        arrays.load(session)
        return profile_util.Side(
            session,
            output[:, : feeds[1][0]],
            tf.reduce_mean(output),
            [{hidden: feeds[0], lengths: feeds[1]}],
            "bert_origin" if use_tensorflow else "bert_fastinfer",
        )


def run(values: flags.FlagValues) -> list[np.ndarray]:
    """Runs the program with parsed flags.

    Returns:
      Seconds of TensorFlow's runs and of the op's.

    Raises:
      FileNotFoundError: A file is not there.
      UserError: A flag or a file is missing or wrong, or the outputs disagree.
    """
    profile_util.check_flags(values)
    sizes = encoder_sizes(values)
    weights = (
        encoder_graphs.load_weights(values.init_checkpoint, sizes)
        if values.init_checkpoint
        else encoder_graphs.random_weights(sizes)
    )
    runner.make_output_dir(values.output_dir)
    batch, seq = values.predict_batch_size, values.max_seq_length
    length = max(1, seq // 2) if values.remove_padding else seq
    rng = np.random.default_rng(1)
    feeds = (
        rng.standard_normal((batch, seq, sizes.hidden), dtype=np.float32),
        np.full(batch, length, np.int32),
    )
    sides = [make_side(values, original, sizes, weights, feeds) for original in (True, False)]
    columns = {
        "batch_size": batch,
        "seq_length": seq,
        "hidden_layers": sizes.layers,
        "attention_heads": sizes.heads,
        "attention_head_size": sizes.size,
    }
    return profile_util.compare(values, sides, columns)


def cli() -> None:
    """The console entry point."""
    cli_lib.run_flag_program(define_flags, run, __doc__, [_OWNER])


if __name__ == "__main__":
    cli()
