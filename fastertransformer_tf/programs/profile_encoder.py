"""Times TensorFlow's own BERT encoder against the op: profile_transformer_inference."""

from __future__ import annotations

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import encoder_graphs, encoder_weights, int8_weights, modeling
from fastertransformer_tf.programs import checked_inputs, path_flags, profiling
from fastertransformer_tf.quantization import points


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
        # Activation, heads and epsilon are not in a checkpoint.
        path = checked_inputs.file_beside(
            reading.prefix_of(values.init_checkpoint), "bert_config_file"
        )
    if path is None:
        heads, size = values.num_attention_heads, values.attention_head_size
        return encoder_graphs.EncoderSizes(values.num_hidden_layers, heads, size, 4 * heads * size)
    config = checked_inputs.load_config(path, 1)  # No position embeddings here: any length will do.
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
    given = {
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "attention_head_size": sizes.size,
    }
    for name, value in given.items():
        if values[name].present and values[name].value != value:
            raise UserError(
                f"--{name}={values[name].value}, expected {value} of {path}, or no such flag"
            )
    return sizes


def make_side(
    values: flags.FlagValues,
    use_tensorflow: bool,
    sizes: encoder_graphs.EncoderSizes,
    weights: encoder_weights.Weights,
    feeds: tuple[np.ndarray, np.ndarray],
) -> profiling.Side:
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
                fp8_mode=values.fp8_mode,
                allow_gemm_test=values.allow_gemm_test,
            )
        output = tf.cast(states, tf.float32)
        session = tf.Session(graph=graph, config=encoder_graphs.session_config(values.xla))
        arrays.load(session)
        return profiling.Side(
            session,
            output[:, : feeds[1][0]],
            tf.reduce_mean(output),
            [{hidden: feeds[0], lengths: feeds[1]}],
            "bert_origin" if use_tensorflow else "bert_fastinfer",
        )


def load_weights(
    values: flags.FlagValues,
    sizes: encoder_graphs.EncoderSizes,
    feeds: tuple[np.ndarray, np.ndarray],
) -> tuple[encoder_weights.Weights, encoder_weights.Weights]:
    """Makes the weights of both sides.

    With int8_mode or fp8_mode those of the op are a quantized checkpoint's, or else the float ones
    with the ranges that the timed batch shows.

    Returns:
      Float weights, and those of the op.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      UserError: It does not fit, or is quantized without --int8_mode and --fp8_mode.
    """
    path = values.init_checkpoint
    is_int8 = bool(path) and points.FORMAT_VARIABLE in reading.Checkpoint(path).shapes
    is_wanted = bool(values.int8_mode or values.fp8_mode)
    if is_int8 and not is_wanted:
        raise UserError(f"--init_checkpoint={path} is quantized, expected --int8_mode=1 or 2")
    if is_int8:
        weights = encoder_weights.load_weights(path, sizes, int8=True)
        return int8_weights.dequantize(weights, sizes), weights
    if path:
        weights = encoder_weights.load_weights(path, sizes)
    else:
        weights = encoder_weights.random_weights(sizes)
    if not is_wanted:
        return weights, weights
    return weights, int8_weights.quantize(weights, sizes, *feeds)


def run(values: flags.FlagValues) -> list[np.ndarray]:
    """Runs the program with parsed flags.

    Returns:
      Seconds of TensorFlow's runs and of the op's.

    Raises:
      FileNotFoundError: A file is not there.
      UserError: A flag or a file is missing or wrong, or the outputs disagree.
    """
    profiling.check_flags(values)
    sizes = encoder_sizes(values)
    batch, seq = values.predict_batch_size, values.max_seq_length
    length = max(1, seq // 2) if values.remove_padding else seq
    rng = np.random.default_rng(1)
    feeds = (
        rng.standard_normal((batch, seq, sizes.hidden), dtype=np.float32),
        np.full(batch, length, np.int32),
    )
    weights, op_weights = load_weights(values, sizes, feeds)
    path_flags.make_output_dir(values.output_dir)
    sides = [
        make_side(values, True, sizes, weights, feeds),
        make_side(values, False, sizes, op_weights, feeds),
    ]
    simulated = None
    if values.int8_mode:
        simulated = int8_weights.simulated_output(op_weights, sizes, values.int8_mode, *feeds)[
            :, :length
        ]
    columns = {
        "batch_size": batch,
        "seq_length": seq,
        "hidden_layers": sizes.layers,
        "attention_heads": sizes.heads,
        "attention_head_size": sizes.size,
    }
    return profiling.compare(values, sides, columns, simulated)
