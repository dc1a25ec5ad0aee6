"""The BERT encoder as a graph: TensorFlow's own layers, or this package's ops.

For programs that compare the two: both take the same weights, keyed by the checkpoint's names:
NumPy arrays, which the graph holds as constants, or tensors, used as they are. B batch, S padded
length, H hidden size, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from fastertransformer_tf import ops, spec
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.graphs.variables import PendingValues, get_variable
from fastertransformer_tf.models import bert_compat, build_settings, modeling, point_encoder
from fastertransformer_tf.models.encoder_weights import Weights
from fastertransformer_tf.quantization import points
from fastertransformer_tf.spec import EncoderSizes


class HeldArrays:
    """Arrays that the default graph reads from variables.

    As constants they would be part of the graph, which TensorFlow copies and rewrites for every new
    fetch, for 10 s and more with BERT-base, and part of the programs that XLA compiles.
    """

    def __init__(self, dtype: tf.DType) -> None:
        """The variables get this type."""
        self._dtype = dtype
        self._values = PendingValues()

    def hold(self, name: str, value: np.ndarray) -> tf.Tensor:
        """Makes a variable; returns its value, to be read once a call. Integers stay integers."""
        dtype = tf.int8 if value.dtype == np.int8 else self._dtype
        if name.endswith(f"/{points.SCALE_LIST}"):
            dtype = tf.float32
        variable = get_variable(name, value.shape, dtype, initializer=tf.zeros_initializer())
        self._values.add(variable, value.astype(dtype.as_numpy_dtype, copy=False))
        return tf.convert_to_tensor(variable)

    def hold_weights(self, weights: Weights) -> list[dict[str, tf.Tensor]]:
        """Holds the arrays of all layers."""
        return [
            {name: self.hold(f"layer_{i}/{name}", value) for name, value in layer.items()}
            for i, layer in enumerate(weights)
        ]

    def load(self, session: tf.Session) -> None:
        """Puts what was held since the last call into its variables, and lets the arrays go."""
        self._values.load(session)


def _as_tensor(weight: np.ndarray | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """A weight as the graph uses it."""
    if isinstance(weight, tf.Tensor):
        return weight
    return tf.constant(weight, tf.int8 if weight.dtype == np.int8 else dtype, name="frozen")


def frozen_scope(weights: Weights, dtype: tf.DType) -> Any:  # noqa: ANN401
    """A variable scope in which tf.get_variable gives `weights` by name, arrays as constants."""

    def frozen(getter: Callable, name: str, **_: object) -> tf.Tensor:
        del getter
        layer, weight = name.split("layer_", 1)[1].split("/", 1)
        return _as_tensor(weights[int(layer)][weight], dtype)

    return tf.variable_scope("", custom_getter=frozen)


def _op_weights(layer: dict[str, Any], dtype: tf.DType) -> dict[str, tf.Tensor]:
    """One layer's weights as the ops name them."""
    return {
        weight.op_input: _as_tensor(layer[weight.google], dtype) for weight in spec.LAYER_WEIGHTS
    }


def _op_scales(weights: Weights, is_quantized: bool) -> list[tf.Tensor]:
    """The scale lists as BertEncoder takes them."""
    if not is_quantized:
        return []
    return [_as_tensor(layer[points.SCALE_LIST], tf.float32) for layer in weights]


def tensorflow_encoder(
    hidden: tf.Tensor,
    lengths: tf.Tensor,
    sizes: EncoderSizes,
    weights: Weights,
    taps: point_encoder.Taps | None = None,
) -> tf.Tensor:
    """bert-tensorflow's own transformer_model, in the type of `hidden`.

    Args:
      hidden: float, half or bfloat16 [B,S,H].
      lengths: int32 [B]: tokens of each sequence; keys past them are masked.
      sizes: of the encoder.
      weights: as random_weights makes them, or tensors in the type of `hidden`.
      taps: build the encoder with named points instead, with these.

    Returns:
      Hidden states [B,S,H]; rows past a length are whatever TensorFlow computes for them.
    """
    bert = bert_compat.modeling()
    options = modeling.EncoderOptions(floatx=hidden.dtype.name, use_tensorflow=True, taps=taps)
    with (
        modeling.encoder_options(options),
        build_settings.layer_norm_epsilon(sizes.layer_norm_eps),
        frozen_scope(weights, hidden.dtype),
    ):
        seq = bert.get_shape_list(hidden)[1]
        mask = tf.sequence_mask(lengths, seq, tf.int32)
        return bert.transformer_model(
            hidden,
            bert.create_attention_mask_from_input_mask(hidden, mask),
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.inner,
            intermediate_act_fn=bert.get_activation(sizes.hidden_act),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )


def op_encoder(
    hidden: tf.Tensor,
    lengths: tf.Tensor,
    sizes: EncoderSizes,
    weights: Weights,
    *,
    remove_padding: bool,
    int8_mode: int = 0,
    fp8_mode: int = 0,
    allow_gemm_test: bool = False,
) -> tf.Tensor:
    """The same by one BertEncoder op; arguments as for tensorflow_encoder.

    With int8_mode or fp8_mode the weights are those of `int8_weights.quantize`. Rows past a length
    are 0 with remove_padding.
    """
    (output,) = ops.bert_encoder(
        hidden,
        lengths,
        None,
        [_op_weights(layer, hidden.dtype) for layer in weights],
        head_num=sizes.heads,
        size_per_head=sizes.size,
        remove_padding=remove_padding,
        int8_mode=int8_mode,
        fp8_mode=fp8_mode,
        amax_list=_op_scales(weights, bool(int8_mode or fp8_mode)),
        allow_gemm_test=allow_gemm_test,
        activation=modeling.op_activation(sizes.hidden_act),
        layernorm_epsilon=sizes.layer_norm_eps,
    )
    return output


def op_layers(
    hidden: tf.Tensor,
    lengths: tf.Tensor,
    sizes: EncoderSizes,
    weights: Weights,
    *,
    remove_padding: bool,
    int8_mode: int = 0,
    fp8_mode: int = 0,
    allow_gemm_test: bool = False,
) -> tf.Tensor:
    """The same by one BertTransformer op a layer, padding removed and rebuilt around them."""
    batch, seq = tf.unstack(tf.shape(hidden)[:2])
    keys = tf.cast(tf.sequence_mask(lengths, seq), hidden.dtype)
    mask = tf.broadcast_to(keys[:, None, None, :], tf.stack([batch, 1, seq, seq]))
    if remove_padding:
        states, id_offset = ops.build_mask_remove_padding(
            from_tensor=hidden, sequence_length=lengths
        )
        boundaries = tf.concat([[0], tf.cumsum(lengths)], 0)
    else:
        states, id_offset = hidden, tf.zeros([0], tf.int32)
        starts = tf.range(batch) * seq
        segments = tf.reshape(tf.stack([starts, starts + lengths], 1), [-1])
        boundaries = tf.concat([segments, [batch * seq]], 0)
    scales = _op_scales(weights, bool(int8_mode or fp8_mode))
    scales = scales or [tf.zeros([0], tf.float32)] * len(weights)
    for index, layer in enumerate(weights):
        states = ops.bert_transformer(
            from_tensor=states,
            to_tensor=states,
            attr_mask=mask,
            sequence_id_offset=id_offset,
            amax_list=scales[index],
            trt_seqlen_offset=boundaries,
            head_num=sizes.heads,
            size_per_head=sizes.size,
            remove_padding=remove_padding,
            int8_mode=int8_mode,
            fp8_mode=fp8_mode,
            layer_idx=index,
            layer_num=sizes.layers,
            allow_gemm_test=allow_gemm_test,
            activation=modeling.op_activation(sizes.hidden_act),
            layernorm_epsilon=sizes.layer_norm_eps,
            **_op_weights(layer, hidden.dtype),
        )
    if remove_padding:
        states = ops.rebuild_padding(
            from_tensor=states, sequence_id_offset=id_offset, atten_mask=mask
        )
    return tf.ensure_shape(states, hidden.shape)


def session_config(xla: bool, threads: int = 0) -> tf.ConfigProto:
    """A session configuration: `threads` of the CPU (0: all), XLA for the whole graph or not.

    With `xla` sessions of this process that ask for XLA compile CPU kernels too, provided that
    none ran before this call: TensorFlow looks at its switch once.
    """
    config = sessions.session_config()
    config.intra_op_parallelism_threads = threads
    config.inter_op_parallelism_threads = 1 if threads else 0
    if xla:
        # A session's level reaches CPU kernels only with this private switch; TF_XLA_FLAGS, which
        # says the same, is read when TensorFlow is loaded.
        from tensorflow.python.client import pywrap_tf_session

        pywrap_tf_session.TF_SetTfXlaCpuGlobalJit(True)
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    return config
