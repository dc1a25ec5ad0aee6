"""The encoder as a Keras layer, for models of one's own.

    import keras, fastertransformer_tf
    hidden = keras.Input([None, 384])
    lengths = keras.Input([], dtype="int32")
    encoder = fastertransformer_tf.BertEncoder(num_layers=6, num_heads=12, inner_size=1536)
    model = keras.Model([hidden, lengths], encoder(hidden, sequence_length=lengths))
    encoder.load_checkpoint("minilm/bert_model.ckpt")

It is for inference: its weights are never trained, and gradients through it are refused; a head
over it trains. Saved models hold the op, and load after `import fastertransformer_tf`.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fastertransformer_tf import ops, spec
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import encoder_weights, masks


def _whole(name: str, value: Any) -> int:
    """Checks a size."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
    return int(value)


@keras.saving.register_keras_serializable(package="fastertransformer_tf")
class BertEncoder(keras.layers.Layer):
    """A stack of post-layer-norm BERT layers, computed by the op of the same name.

    Source: google-research/bert, modeling.py, transformer_model. Shape letters: B batch, S padded
    length, H hidden size (that of the input), N heads, L layers.

    Call arguments:
      hidden_states: [B,S,H], the embeddings.
      mask: Which keys a query may attend to: [B,S] for all queries of a sequence, or [B,S,S]; bool
        or number, true or 1 where it may. Keras passes on the mask of the layer before, if there is
        one. Any mask is honoured exactly; one of ones followed by zeros is as fast as lengths.
      sequence_length: int32 [B], each in [0,S], in place of `mask`: the first tokens are real.
      training: Has no effect: there is no dropout.

    Returns:
      [B,S,H] in the layer's compute type, or with `return_all_layers` a list of L of them. With
      remove_padding the rows past a sequence's last real token are 0.

    Weights are variables of the compute type, "float16" under the policy "mixed_float16": a cast in
    every call would hide from the op that they are the same as before, and it would prepare them
    again.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        inner_size: int,
        *,
        activation: str = "gelu_tanh",
        layernorm_epsilon: float = spec.GOOGLE_LAYER_NORM_EPS,
        remove_padding: bool = True,
        return_all_layers: bool = False,
        **kwargs: Any,
    ) -> None:
        """Makes the layer; its weights are made when the hidden size is known.

        Args:
          num_layers: L.
          num_heads: N, of which H is a multiple.
          inner_size: Width of the feed-forward network.
          activation: Of the feed-forward network: gelu_tanh (google's gelu), gelu_erf or relu.
          layernorm_epsilon: Added to the variance in the layer norms.
          remove_padding: Compute real tokens alone, where a mask or lengths are given.
          return_all_layers: Return every layer's output.
          **kwargs: Of keras.layers.Layer: name, dtype (a policy), ...

        Raises:
          ValueError: A value out of range, or `trainable=True`.
        """
        if kwargs.pop("trainable", False):
            raise ValueError("trainable is True, expected False: the op has no gradient")
        super().__init__(trainable=False, **kwargs)
        self.num_layers = _whole("num_layers", num_layers)
        self.num_heads = _whole("num_heads", num_heads)
        self.inner_size = _whole("inner_size", inner_size)
        if activation not in spec.ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}, expected {', '.join(spec.ACTIVATIONS)}"
            )
        if not 0 < layernorm_epsilon < 1:
            raise ValueError(
                f"layernorm_epsilon is {layernorm_epsilon!r}, expected above 0 and below 1"
            )
        if self.compute_dtype not in spec.FLOAT_TYPES:
            raise ValueError(
                f"the compute type is {self.compute_dtype}, expected {', '.join(spec.FLOAT_TYPES)}"
            )
        self.activation = activation
        self.layernorm_epsilon = float(layernorm_epsilon)
        self.remove_padding = bool(remove_padding)
        self.return_all_layers = bool(return_all_layers)
        self.supports_masking = True
        self._layer_weights: list[dict[str, Any]] = []

    def build(self, input_shape: Any) -> None:
        """Makes the weights for hidden states of `input_shape`, [B,S,H].

        Raises:
          ValueError: H is not known or no multiple of num_heads.
        """
        if len(input_shape) != 3 or input_shape[-1] is None or input_shape[-1] % self.num_heads:
            raise ValueError(
                f"hidden_states have shape {tuple(input_shape)}, expected [B,S,H] with H a known "
                f"multiple of num_heads, {self.num_heads}"
            )
        hidden = int(input_shape[-1])
        for index in range(self.num_layers):
            layer = {}
            for weight in spec.LAYER_WEIGHTS:
                ones = weight.op_input.endswith("_gamma")
                kernel = keras.initializers.TruncatedNormal(stddev=0.02)
                layer[weight.op_input] = self.add_weight(
                    name=f"layer_{index}_{weight.op_input}",
                    shape=weight.sizes(hidden, self.inner_size),
                    dtype=self.compute_dtype,
                    initializer=kernel if weight.is_kernel else ("ones" if ones else "zeros"),
                    trainable=False,
                    autocast=False,
                )
            self._layer_weights.append(layer)

    def call(
        self,
        hidden_states: Any,
        mask: Any = None,
        sequence_length: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Computes the stack; the class's documentation has the arguments.

        Raises:
          ValueError: Both `mask` and `sequence_length` are given, or a mask of other rank.
        """
        del training
        lengths, attention_mask = self._lengths_and_mask(hidden_states, mask, sequence_length)
        outputs = ops.bert_encoder(
            hidden_states,
            lengths,
            attention_mask,
            [
                {name: tf.convert_to_tensor(weight) for name, weight in layer.items()}
                for layer in self._layer_weights
            ],
            head_num=self.num_heads,
            size_per_head=hidden_states.shape[-1] // self.num_heads,
            num_outputs=self.num_layers if self.return_all_layers else 1,
            remove_padding=self.remove_padding and lengths is not None,
            layernorm_epsilon=self.layernorm_epsilon,
            activation=self.activation,
        )
        for output in outputs:
            output.set_shape(hidden_states.shape)
        return list(outputs) if self.return_all_layers else outputs[-1]

    def _lengths_and_mask(self, hidden: Any, mask: Any, lengths: Any) -> tuple[Any, Any]:
        """What the op takes; None for what there is not."""
        if lengths is not None:
            if mask is not None:
                raise ValueError("mask and sequence_length are given, expected one of them")
            return tf.cast(lengths, tf.int32), None
        if mask is None:
            return None, None
        mask = tf.convert_to_tensor(mask)
        rank = mask.shape.rank
        if rank == 3:
            return None, tf.cast(mask, hidden.dtype)
        if rank != 2:
            raise ValueError(f"mask has shape {mask.shape}, expected [B,S] or [B,S,S]")
        return masks.lengths_and_mask(tf.cast(mask, tf.int32), hidden.dtype, self.remove_padding)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shape of the outputs: that of the input."""
        return [input_shape] * self.num_layers if self.return_all_layers else input_shape

    def load_checkpoint(
        self, checkpoint: str | os.PathLike[str], scope: str = "bert/encoder"
    ) -> None:
        """Fills the weights from a google-research BERT checkpoint.

        Args:
          checkpoint: Its prefix, such as "uncased_L-12_H-768_A-12/bert_model.ckpt".
          scope: Above its variables layer_0/..., layer_1/...

        Raises:
          UserError: The layer has no weights yet (call it, or `build([None, None, H])`), or the
            checkpoint does not fit it; then no weight has changed.
          FileNotFoundError: There is no such checkpoint.
        """
        if not self._layer_weights:
            raise UserError(
                f"{self.name} has no weights yet, expected a call or build([None, None, H]) before "
                "load_checkpoint"
            )
        hidden = self._layer_weights[0]["attr_q_bias"].shape[0]
        sizes = spec.EncoderSizes(
            self.num_layers, self.num_heads, hidden // self.num_heads, self.inner_size
        )
        layers = encoder_weights.load_weights(os.fspath(checkpoint), sizes, scope=scope)
        for variables, values in zip(self._layer_weights, spec.by_op_input(layers), strict=True):
            for name, variable in variables.items():
                variable.assign(values[name].astype(variable.dtype))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("trainable", None)
        return {
            **config,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "inner_size": self.inner_size,
            "activation": self.activation,
            "layernorm_epsilon": self.layernorm_epsilon,
            "remove_padding": self.remove_padding,
            "return_all_layers": self.return_all_layers,
        }
