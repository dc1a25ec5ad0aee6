"""The ops with types and documentation; importing this module loads the .so with them.

The docstrings repeat the text of the ops' own documentation (`tf_ops/op/bert_ops.cc`);
`tests/test_ops_loader.py` keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fastertransformer_tf import spec
from fastertransformer_tf.loading import library

# The weights of one layer, in the order of the ops' inputs; `spec.LAYER_WEIGHTS` has their shapes.
LAYER_WEIGHTS = tuple(weight.op_input for weight in spec.LAYER_WEIGHTS)

_library = library.load()


def _no_gradient(op: Any, *unused_grads: tf.Tensor) -> list[tf.Tensor | None]:
    """Refuses to train through an inference op.

    A function that is traced (tf.function, Keras' fit) asks for the gradients of everything below
    the loss, wanted or not: there an op that fails when it runs takes their place, and TensorFlow
    drops it where nobody needs it, so that a head over a frozen encoder trains.

    Raises:
      NotImplementedError: In eager mode and in a graph outside of functions.
    """
    message = (
        f"{op.type} has no gradient: it is for inference. Train with TensorFlow's own transformer, "
        "EncoderOptions(use_tensorflow=True), or put tf.stop_gradient around a frozen encoder's "
        "output"
    )
    if tf.executing_eagerly() or not isinstance(
        tf.compat.v1.get_default_graph(), tf.__internal__.FuncGraph
    ):
        raise NotImplementedError(message)
    return [
        _library.gradient_not_available(T=tensor.dtype, message=message)
        if tensor.dtype.is_floating
        else None
        for tensor in op.inputs
    ]


for _op_type in ("BertTransformer", "BertEncoder", "BuildMaskRemovePadding", "RebuildPadding"):
    tf.RegisterGradient(_op_type)(_no_gradient)


def _is_assigned_in_place(weight: Any) -> bool:
    """Says whether `weight` is, or reads, a TensorFlow 1 reference variable.

    Assigning one writes into the buffer that it has, so that prepared weights which were found by
    that buffer would be out of date.
    """
    while not tf.is_symbolic_tensor(weight) or not weight.dtype._is_ref_dtype:
        if not tf.is_symbolic_tensor(weight):
            return not isinstance(weight, tf.Tensor) and getattr(
                getattr(weight, "dtype", None), "_is_ref_dtype", False
            )
        if weight.op.type != "Identity":
            return False
        weight = weight.op.inputs[0]
    return True


def _lengths(values: Any) -> tf.Tensor:
    """Makes a tensor of lengths in the type that they have.

    TensorFlow would convert an array to the type that is the op's default, and a length of 2^32 + 3
    would become 3.
    """
    return tf.convert_to_tensor(values, tf.int32 if isinstance(values, (list, tuple)) else None)


# AutoGraph would add its own variables to locals().
@tf.autograph.experimental.do_not_convert
def bert_transformer(
    from_tensor: tf.Tensor,
    to_tensor: tf.Tensor,
    attr_q_kernel: tf.Tensor,
    attr_q_bias: tf.Tensor,
    attr_k_kernel: tf.Tensor,
    attr_k_bias: tf.Tensor,
    attr_v_kernel: tf.Tensor,
    attr_v_bias: tf.Tensor,
    attr_mask: tf.Tensor,
    attr_output_kernel: tf.Tensor,
    attr_output_bias: tf.Tensor,
    attr_output_layernorm_beta: tf.Tensor,
    attr_output_layernorm_gamma: tf.Tensor,
    inter_kernel: tf.Tensor,
    inter_bias: tf.Tensor,
    output_kernel: tf.Tensor,
    output_bias: tf.Tensor,
    output_layernorm_beta: tf.Tensor,
    output_layernorm_gamma: tf.Tensor,
    sequence_id_offset: tf.Tensor,
    amax_list: tf.Tensor,
    trt_seqlen_offset: tf.Tensor,
    *,
    head_num: int,
    size_per_head: int,
    remove_padding: bool = True,
    int8_mode: int = 0,
    layer_idx: int = 0,
    layer_num: int = 12,
    allow_gemm_test: bool = False,
    layernorm_epsilon: float = 1e-12,
    activation: str = "gelu_tanh",
    is_weight_const: bool = False,
    cache_weights: bool | None = None,
    fp8_mode: int = 0,
    name: str | None = None,
) -> tf.Tensor:
    """One post-layer-norm BERT layer (google-research/bert, modeling.py, transformer_model).

    Shape letters: B batch, S padded length, T tokens, H = head_num * size_per_head hidden size,
    I inner size (taken from inter_kernel). All tensors but the last three inputs have one type:
    float32, half or bfloat16; with int8_mode or fp8_mode the six matrices are int8.

    Weights are prepared once and found again by their buffers: memory that a tensor shares with
    another library (DLPack) must not be written to while it serves as a weight.

    Args:
      from_tensor: Hidden states: [B,S,H] or [B*S,H]; with remove_padding packed, [T,H].
      to_tensor: The same tensor as from_tensor; another one is refused.
      attr_q_kernel: [H,H], in x out.
      attr_q_bias: [H].
      attr_k_kernel: [H,H].
      attr_k_bias: [H].
      attr_v_kernel: [H,H].
      attr_v_bias: [H].
      attr_mask: [B,1,S,S] or [B,S,S]; 1: query may attend to key, 0: may not. (1 - mask) * -10000
        is added to the scaled scores. Gives B and S. Always honoured.
      attr_output_kernel: [H,H].
      attr_output_bias: [H].
      attr_output_layernorm_beta: [H].
      attr_output_layernorm_gamma: [H].
      inter_kernel: [H,I].
      inter_bias: [I].
      output_kernel: [I,H].
      output_bias: [H].
      output_layernorm_beta: [H].
      output_layernorm_gamma: [H].
      sequence_id_offset: With remove_padding [T]: packed row i is row i + sequence_id_offset[i] of
        the padded layout, as BuildMaskRemovePadding makes it. Otherwise empty or ignored.
      amax_list: [80+5*H+I+11], the scales of int8_mode 1 to 3 and fp8_mode 1; else ignored.
      trt_seqlen_offset: Row boundaries of the sequences. With remove_padding [B+1]: 0, s1, s1+s2,
        ..., T. Otherwise [2B+1]: 0, s1, S, S+s2, 2S, ... (a real and a padding segment for each
        sequence).
      head_num: Attention heads.
      size_per_head: Size of one head.
      remove_padding: The rows are packed: no padding among them.
      int8_mode: 0 off; 1, 2 or 3 (which is 2): the six matrices are int8 (docs/int8.md).
      layer_idx: This layer's index. With int8_mode 2 the outputs of all but the last are
        quantized.
      layer_num: Layers of the model.
      allow_gemm_test: GPU: search the fastest GEMM algorithm at the first call of each new shape.
      layernorm_epsilon: Added to the variance in both layer norms.
      activation: Of the feed-forward network; gelu_tanh is google-research BERT's gelu.
      is_weight_const: Has no effect any more: weights are prepared once, constant or not.
      cache_weights: Keep the prepared weights and find them by their buffers. False where weights
        may be assigned in place, as TensorFlow 1's reference variables are: then they are prepared
        in every call. None: decided by the weights given.
      fp8_mode: 0 off; 1: products of float8 from the int8 matrices, int8_mode is 0 (docs/fp8.md).
      name: Name of the operation.

    Returns:
      output: Same shape as from_tensor.

    Raises:
      tf.errors.InvalidArgumentError: An input has a wrong shape or value.
      tf.errors.UnimplementedError: fp8_mode on a CPU, or a GPU below compute capability 8.9.
    """
    arguments = dict(locals())
    same = to_tensor is from_tensor
    tensors = tf.nest.map_structure(tf.convert_to_tensor, {k: arguments[k] for k in LAYER_WEIGHTS})
    if cache_weights is None:
        arguments["cache_weights"] = not any(
            _is_assigned_in_place(arguments[key]) for key in (*LAYER_WEIGHTS, "amax_list")
        )
    arguments |= tensors
    arguments["from_tensor"] = tf.convert_to_tensor(from_tensor)
    if same:  # An array would become two tensors.
        arguments["to_tensor"] = arguments["from_tensor"]
    return _library.bert_transformer(**arguments)


# AutoGraph would add its own variables to locals().
@tf.autograph.experimental.do_not_convert
def bert_encoder(
    hidden_states: tf.Tensor,
    sequence_length: tf.Tensor | None,
    attention_mask: tf.Tensor | None,
    layers: Sequence[Mapping[str, tf.Tensor]],
    *,
    head_num: int,
    size_per_head: int,
    num_outputs: int = 1,
    remove_padding: bool = True,
    int8_mode: int = 0,
    amax_list: Sequence[tf.Tensor] = (),
    allow_gemm_test: bool = False,
    layernorm_epsilon: float = 1e-12,
    activation: str = "gelu_tanh",
    is_weight_const: bool = False,
    cache_weights: bool | None = None,
    fp8_mode: int = 0,
    name: str | None = None,
) -> list[tf.Tensor]:
    """A stack of post-layer-norm BERT layers in one call.

    Source: google-research/bert, modeling.py, transformer_model. QKV weights are fused, padding is
    removed and rebuilt inside. Shape letters as for BertTransformer; L = num_layers. All
    floating-point tensors but the scales have the type of hidden_states: float32, half or bfloat16.

    Args:
      hidden_states: [B,S,H], the embeddings.
      sequence_length: [B], each in [0,S]: the first sequence_length[b] tokens of sequence b are
        real. Or empty, [0]: all S are (then remove_padding must be false, or B 0). None means
        empty, and no padding to remove.
      attention_mask: [B,1,S,S] or [B,S,S], 1: query may attend to key, 0: may not; on top of the
        lengths. Or empty, [0]: the lengths alone decide. (1 - mask) * -10000 is added to the
        scaled scores. None means empty.
      layers: The weights of every layer, first to last, keyed as `LAYER_WEIGHTS`. Their shapes:
        attr_q_kernel: L times [H,H], in x out.
        attr_q_bias: L times [H].
        attr_k_kernel: L times [H,H].
        attr_k_bias: L times [H].
        attr_v_kernel: L times [H,H].
        attr_v_bias: L times [H].
        attr_output_kernel: L times [H,H].
        attr_output_bias: L times [H].
        attr_output_layernorm_beta: L times [H].
        attr_output_layernorm_gamma: L times [H].
        inter_kernel: L times [H,I].
        inter_bias: L times [I].
        output_kernel: L times [I,H].
        output_bias: L times [H].
        output_layernorm_beta: L times [H].
        output_layernorm_gamma: L times [H].
        The op's own attribute num_layers: L. is their number.
      head_num: Attention heads.
      size_per_head: Size of one head.
      num_outputs: 1 or num_layers.
      remove_padding: Compute only the real tokens.
      int8_mode: 0 off; 1, 2 or 3 (which is 2): the six matrices are int8 (docs/int8.md).
      amax_list: L times [80+5*H+I+11], the scales of int8_mode 1 to 3 and fp8_mode 1; else none.
      allow_gemm_test: GPU: search the fastest GEMM algorithm at the first call of each new shape.
      layernorm_epsilon: Added to the variance in both layer norms.
      activation: Of the feed-forward network; gelu_tanh is google-research BERT's gelu.
      is_weight_const: Has no effect any more: weights are prepared once, constant or not.
      cache_weights: Keep the prepared weights and find them by their buffers. False where weights
        may be assigned in place, as TensorFlow 1's reference variables are: then they are prepared
        in every call. None: decided by the weights given.
      fp8_mode: 0 off; 1: products of float8 from the int8 matrices, int8_mode is 0 (docs/fp8.md).
      name: Name of the operation.

    Returns:
      A list of num_outputs tensors. output: [B,S,H]: the last layer's, or with num_outputs =
      num_layers every layer's. With remove_padding the rows past a sequence's length are 0.

    Raises:
      ValueError: `layers` is empty or a layer's keys are not exactly `LAYER_WEIGHTS`.
      tf.errors.InvalidArgumentError: An input has a wrong shape or value.
      tf.errors.UnimplementedError: fp8_mode on a CPU, or a GPU below compute capability 8.9.
    """
    spec.check_layers(layers)
    if cache_weights is None:
        cache_weights = not any(
            _is_assigned_in_place(weight)
            for weights in (*(layer.values() for layer in layers), amax_list)
            for weight in weights
        )
    hidden_states = tf.convert_to_tensor(hidden_states)
    if sequence_length is None:
        remove_padding = False  # There is none.
        sequence_length = np.zeros([0], np.int32)
    if attention_mask is None:
        attention_mask = tf.zeros([0], hidden_states.dtype)
    return _library.bert_encoder(
        hidden_states=hidden_states,
        sequence_length=_lengths(sequence_length),
        attention_mask=attention_mask,
        # A copy of what is no tensor yet: the op may look at an array's own memory, and find what
        # it has prepared by an address whose content has changed.
        **{key: [tf.convert_to_tensor(layer[key]) for layer in layers] for key in LAYER_WEIGHTS},
        amax_list=[tf.convert_to_tensor(scales, tf.float32) for scales in amax_list],
        num_outputs=num_outputs,
        head_num=head_num,
        size_per_head=size_per_head,
        remove_padding=remove_padding,
        int8_mode=int8_mode,
        allow_gemm_test=allow_gemm_test,
        layernorm_epsilon=layernorm_epsilon,
        activation=activation,
        is_weight_const=is_weight_const,
        cache_weights=cache_weights,
        fp8_mode=fp8_mode,
        name=name,
    )


# AutoGraph would add its own variables to locals().
@tf.autograph.experimental.do_not_convert
def build_mask_remove_padding(
    from_tensor: tf.Tensor, sequence_length: tf.Tensor, *, name: str | None = None
) -> Any:
    """Removes the padding of a batch: packs the first sequence_length[b] rows of every sequence.

    Args:
      from_tensor: [B,S,H].
      sequence_length: [B], each in [0,S].
      name: Name of the operation.

    Returns:
      A named tuple of
      output: [T,H], T the sum of sequence_length.
      sequence_id_offset: [T]: packed row i is row i + sequence_id_offset[i] of the [B*S,H] input.

    Raises:
      tf.errors.InvalidArgumentError: An input has a wrong shape or value.
    """
    return _library.build_mask_remove_padding(from_tensor, _lengths(sequence_length), name=name)


# AutoGraph would add its own variables to locals().
@tf.autograph.experimental.do_not_convert
def rebuild_padding(
    from_tensor: tf.Tensor,
    sequence_id_offset: tf.Tensor,
    atten_mask: tf.Tensor,
    *,
    isCOL32: bool = False,
    int8_mode: int = 0,
    name: str | None = None,
) -> tf.Tensor:
    """Undoes BuildMaskRemovePadding: puts packed rows where they were, zeros elsewhere.

    Args:
      from_tensor: [T,H].
      sequence_id_offset: [T], as BuildMaskRemovePadding returned it.
      atten_mask: [B,1,S,S] or [B,S,S]; only its shape is used.
      isCOL32: The INT8 tile order of the original; rows are never in it.
      int8_mode: Has no effect: rows of all modes are of type T.
      name: Name of the operation.

    Returns:
      output: [B,S,H].

    Raises:
      tf.errors.InvalidArgumentError: An input has a wrong shape or value.
      tf.errors.UnimplementedError: isCOL32 is true.
    """
    return _library.rebuild_padding(
        from_tensor, sequence_id_offset, atten_mask, isCOL32=isCOL32, int8_mode=int8_mode, name=name
    )
