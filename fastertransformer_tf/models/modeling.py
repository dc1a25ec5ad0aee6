"""bert-tensorflow's `modeling.transformer_model` by the BertEncoder op.

    options = EncoderOptions(floatx="bfloat16", remove_padding=True)
    with encoder_options(options):
        model = bert_compat.modeling().BertModel(config, is_training=False, ...)

Inside the block every BertModel is built with the op; outside of it, and with `use_tensorflow`,
with TensorFlow's own transformer. The variables have the names of google's checkpoints, in whatever
scope the model is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from fastertransformer_tf import ops, spec
from fastertransformer_tf.graphs import float_types
from fastertransformer_tf.graphs.variables import get_variable
from fastertransformer_tf.models import bert_compat, build_settings, masks, point_encoder
from fastertransformer_tf.quantization import points, scale_list

_tf1 = tf.compat.v1
_state = threading.local()
_install_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """How the transformer of a BertModel is built.

    Attributes:
      floatx: Type of variables, embeddings, encoder and head: float32, float16 or bfloat16.
      remove_padding: Compute only real tokens; rows past a sequence's last real token are 0.
      int8_mode: 0 off; 1, 2 or 3 (which is 2): kernels are int8, as ckpt_quantization writes them
        (docs/int8.md).
      fp8_mode: 0 off; 1: products of float8 from the same int8 kernels (docs/fp8.md), GPUs alone.
      allow_gemm_test: GPU: search the fastest GEMM algorithm at the first call of each new shape.
      use_tensorflow: TensorFlow's own transformer instead of the op, for comparison and training.
      all_layers: The inner layers' outputs will be fetched: one op computes them all. Without it
        they are right too, but fetching them costs a second pass through the encoder.
      taps: With `use_tensorflow`: build `point_encoder`'s transformer instead, with these.
      mixed_precision: With `taps`: its products and activations are bfloat16, all variables, the
        embeddings and the head `floatx`.
    """

    floatx: str = "float32"
    remove_padding: bool = False
    int8_mode: int = 0
    fp8_mode: int = 0
    allow_gemm_test: bool = False
    use_tensorflow: bool = False
    all_layers: bool = False
    taps: point_encoder.Taps | None = None
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        """Checks the combination.

        Raises:
          ValueError: An unknown type or mode, or flags that exclude each other.
        """
        float_types.float_type(self.floatx)
        if self.int8_mode not in (0, *points.QUANT_MODES.values()):
            raise ValueError(f"int8_mode is {self.int8_mode}, expected 0, 1, 2 or 3")
        if self.fp8_mode not in (0, 1):
            raise ValueError(f"fp8_mode is {self.fp8_mode}, expected 0 or 1")
        if self.fp8_mode and self.int8_mode:
            raise ValueError(
                f"fp8_mode is {self.fp8_mode} and int8_mode {self.int8_mode}, expected one of them "
                "to be 0"
            )
        for name in ("remove_padding", "int8_mode", "fp8_mode"):
            if self.use_tensorflow and getattr(self, name):
                raise ValueError(
                    f"{name} needs the op, but TensorFlow's own transformer was asked for: leave "
                    "one of the two out"
                )
        if self.taps is not None and not self.use_tensorflow:
            raise ValueError("taps need use_tensorflow: the op has no points")
        if self.mixed_precision and self.taps is None:
            raise ValueError("mixed_precision needs taps: it is of the encoder that has points")

    @property
    def is_quantized(self) -> bool:
        """Whether kernels are int8, and scale lists come with them."""
        return bool(self.int8_mode or self.fp8_mode)


@contextlib.contextmanager
def encoder_options(options: EncoderOptions) -> Iterator[None]:
    """Builds every BertModel of the block, in this thread, as `options` say."""
    _install()
    previous = getattr(_state, "options", None)
    _state.options = options
    try:
        with build_settings.floatx(options.floatx):
            yield
    finally:
        _state.options = previous


def current_options() -> EncoderOptions:
    """Returns the options of the surrounding `encoder_options`, in this thread, or the defaults."""
    return getattr(_state, "options", None) or EncoderOptions()


def activation(hidden_act: Any) -> Any:
    """Returns the function of a `hidden_act` of bert_config.json; None of the identity.

    Raises:
      ValueError: There is none of that name.
    """
    if isinstance(hidden_act, str) and hidden_act.lower() == "gelu_erf":
        return gelu_erf
    return bert_compat.modeling().get_activation(hidden_act)


def gelu_erf(x: tf.Tensor) -> tf.Tensor:
    """The exact GELU, x * Phi(x) (Hendrycks and Gimpel, 2016); hidden_act "gelu_erf"."""
    return tf.nn.gelu(x, approximate=False)


def op_activation(activation: Callable[[tf.Tensor], tf.Tensor] | str | None) -> str:
    """Returns the op's name of an activation function.

    Args:
      activation: What `modeling.get_activation` returned, or a `hidden_act` of bert_config.json.

    Raises:
      ValueError: The op does not have it.
    """
    if isinstance(activation, str) or activation is None:
        key: Any = activation.lower() if activation else activation
        known: dict[Any, str] = {**spec.OP_ACTIVATIONS}
    else:
        key = activation
        bert_gelu = bert_compat.modeling().gelu
        known = {bert_gelu: "gelu_tanh", gelu_erf: "gelu_erf", tf.nn.relu: "relu"}
    if key not in known:
        name = getattr(activation, "__name__", activation)
        raise ValueError(
            f"hidden_act is {name!r}, expected gelu, gelu_erf or relu: the op has no other; "
            "TensorFlow's own transformer has"
        )
    return known[key]


def _layer_weights(
    hidden_size: int,
    intermediate_size: int,
    dtype: tf.DType,
    initializer_range: float,
    kernel_dtype: tf.DType,
) -> dict[str, tf.Tensor]:
    """Creates (or gets) the 16 variables of a layer in the current scope; int8 kernels as zeros."""
    initializers = {
        "kernel": _tf1.truncated_normal_initializer(stddev=initializer_range),
        "gamma": _tf1.ones_initializer(),
    }
    weights = {}
    for weight in spec.LAYER_WEIGHTS:
        shape = weight.sizes(hidden_size, intermediate_size)
        scope, name = weight.google.rsplit("/", 1)
        initializer = initializers.get(name, _tf1.zeros_initializer())
        stored = kernel_dtype if weight.is_quantized else dtype
        if stored == tf.int8:
            initializer = _tf1.zeros_initializer()
        with _tf1.variable_scope(scope):
            weights[weight.op_input] = tf.convert_to_tensor(
                get_variable(name, shape, stored, initializer=initializer)
            )
    return weights


def _scale_list(hidden_size: int, intermediate_size: int) -> tf.Tensor:
    """Creates (or gets) the variable of a layer's scale list in the current scope."""
    shape = [scale_list.length(hidden_size, intermediate_size)]
    ones = _tf1.ones_initializer()
    return tf.convert_to_tensor(get_variable(points.SCALE_LIST, shape, tf.float32, ones))


def _check_sizes(input_tensor: tf.Tensor, hidden_size: int, num_attention_heads: int) -> None:
    """Refuses sizes that do not go together."""
    if hidden_size % num_attention_heads:
        raise ValueError(
            f"hidden_size is {hidden_size}, expected a multiple of num_attention_heads, "
            f"{num_attention_heads}"
        )
    if input_tensor.shape.rank != 3 or input_tensor.shape[2] != hidden_size:
        raise ValueError(
            f"input_tensor has shape {input_tensor.shape}, expected [B,S,{hidden_size}]"
        )


def transformer_model(
    input_tensor: tf.Tensor,
    attention_mask: tf.Tensor | None = None,
    hidden_size: int = 768,
    num_hidden_layers: int = 12,
    num_attention_heads: int = 12,
    intermediate_size: int = 3072,
    intermediate_act_fn: Callable[[tf.Tensor], tf.Tensor] | str | None = "gelu",
    hidden_dropout_prob: float = 0.1,
    attention_probs_dropout_prob: float = 0.1,
    initializer_range: float = 0.02,
    do_return_all_layers: bool = False,
    *,
    sequence_length: tf.Tensor | None = None,
    options: EncoderOptions | None = None,
) -> tf.Tensor | list[tf.Tensor]:
    """The encoder of `bert.modeling.transformer_model` in one BertEncoder op: same arguments.

    Args:
      input_tensor: [B,S,H] float32, half or bfloat16.
      attention_mask: [B,S,S], 1 may attend, 0 may not, any type. One that BertModel made from its
        input_mask is known by that and needs no memory.
      hidden_size: H.
      num_hidden_layers: L.
      num_attention_heads: N; H is a multiple of it.
      intermediate_size: I.
      intermediate_act_fn: bert's gelu (tanh form), `gelu_erf` or tf.nn.relu.
      hidden_dropout_prob: Must be 0 or None: the op is for inference.
      attention_probs_dropout_prob: Must be 0 or None.
      initializer_range: Standard deviation of initial kernels.
      do_return_all_layers: Return every layer's output.
      sequence_length: int32 [B], the real tokens of each sequence, for a mask of one's own.
      options: Those of the surrounding `encoder_options` when None.

    Returns:
      [B,S,H], or a list of L such tensors. With remove_padding, padding rows are 0.

    Raises:
      ValueError: Dropout, an activation or a size that the op does not have, or remove_padding
        with a mask that tells no lengths.
    """
    options = options or current_options()
    if hidden_dropout_prob or attention_probs_dropout_prob:
        raise ValueError(
            f"hidden_dropout_prob is {hidden_dropout_prob} and attention_probs_dropout_prob is "
            f"{attention_probs_dropout_prob}, expected 0: the op is for inference; build with "
            "is_training=False, or train with EncoderOptions(use_tensorflow=True)"
        )
    _check_sizes(input_tensor, hidden_size, num_attention_heads)
    activation = op_activation(intermediate_act_fn)
    dtype = input_tensor.dtype

    layers, scale_lists = [], []
    kernel_dtype = tf.int8 if options.is_quantized else dtype
    for index in range(num_hidden_layers):
        with _tf1.variable_scope(f"layer_{index}"):
            layers.append(
                _layer_weights(
                    hidden_size, intermediate_size, dtype, initializer_range, kernel_dtype
                )
            )
            if options.is_quantized:
                scale_lists.append(_scale_list(hidden_size, intermediate_size))

    remove_padding = options.remove_padding
    input_mask = getattr(attention_mask, "_ft_input_mask", None)
    if input_mask is not None and sequence_length is None:
        sequence_length, attention_mask = masks.lengths_and_mask(input_mask, dtype, remove_padding)
    elif attention_mask is not None:
        attention_mask = tf.cast(attention_mask, dtype)
    if remove_padding and sequence_length is None:
        raise ValueError(
            "remove_padding needs the lengths: give sequence_length, int32 [B], or an "
            "attention_mask made by create_attention_mask_from_input_mask"
        )

    def encoder(num_outputs: int) -> list[tf.Tensor]:
        return ops.bert_encoder(
            input_tensor,
            sequence_length,
            attention_mask,
            layers,
            head_num=num_attention_heads,
            size_per_head=hidden_size // num_attention_heads,
            num_outputs=num_outputs,
            remove_padding=remove_padding,
            int8_mode=options.int8_mode,
            fp8_mode=options.fp8_mode,
            amax_list=scale_lists,
            allow_gemm_test=options.allow_gemm_test,
            activation=activation,
            layernorm_epsilon=build_settings.current_layer_norm_epsilon(),
        )

    if not do_return_all_layers:
        return encoder(1)[-1]
    if options.all_layers or num_hidden_layers == 1:
        return list(encoder(num_hidden_layers))
    # BertModel asks for all layers but most models use the last alone. TensorFlow does not run
    # what is not fetched: of these two ops, usually the second.
    last = encoder(1)[-1]
    return [*encoder(num_hidden_layers)[:-1], last]


def _install() -> None:
    """Puts our functions into `bert.modeling`, once; each looks at the current options."""
    module: Any = bert_compat.modeling()
    with _install_lock:
        if getattr(module, "_ft_installed", False):
            return
        original_transformer = module.transformer_model
        original_mask = module.create_attention_mask_from_input_mask
        original_activation = module.get_activation

        def choose_transformer(*args: Any, **kwargs: Any) -> Any:
            options = getattr(_state, "options", None)
            if options is not None and options.taps is not None:
                compute_type = tf.bfloat16 if options.mixed_precision else None
                return point_encoder.transformer_model(
                    *args, **kwargs, taps=options.taps, compute_type=compute_type
                )
            if options is None or options.use_tensorflow:
                return original_transformer(*args, **kwargs)
            return transformer_model(*args, **kwargs)

        def create_attention_mask(from_tensor: tf.Tensor, to_mask: tf.Tensor) -> tf.Tensor:
            mask = original_mask(from_tensor, to_mask)
            mask._ft_input_mask = tf.convert_to_tensor(to_mask)
            return mask

        def get_activation(name: Any) -> Any:
            if isinstance(name, str) and name.lower() == "gelu_erf":
                return gelu_erf
            return original_activation(name)

        module.transformer_model = choose_transformer
        module.create_attention_mask_from_input_mask = create_attention_mask
        module.get_activation = get_activation
        module._ft_installed = True
