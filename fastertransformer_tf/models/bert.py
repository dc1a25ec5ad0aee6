"""BERT from token ids to hidden states: embeddings, encoder and pooler.

Source: google-research/bert modeling.py, BertModel; the variables have its names. The encoder is
what `modeling.encoder_options` says: the op, `point_encoder`'s, or, to compare with, all of
bert-tensorflow's own BertModel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from fastertransformer_tf.graphs.variables import get_variable
from fastertransformer_tf.models import (
    bert_compat,
    bert_layers,
    build_settings,
    masks,
    modeling,
    point_encoder,
)

_tf1 = tf.compat.v1


@dataclasses.dataclass(frozen=True)
class Bert:
    """What heads are built on.

    Attributes:
      layers: Outputs, [B,S,H] in `floatx`: of every layer with `EncoderOptions.all_layers`, else
        of the last alone.
      pooled: tanh of a dense layer of the first token's, [B,H].
    """

    layers: list[tf.Tensor]
    pooled: tf.Tensor

    @property
    def sequence(self) -> tf.Tensor:
        """The last layer's output."""
        return self.layers[-1]


def build(
    config: Any,
    input_ids: tf.Tensor,
    input_mask: tf.Tensor,
    segment_ids: tf.Tensor,
    *,
    is_training: bool,
) -> Bert:
    """Builds the model in the scope `bert`, as the surrounding `encoder_options` say.

    Args:
      config: A BertConfig; its layer_norm_eps, where it has one, is followed.
      input_ids: int32 [B,S].
      input_mask: int32 [B,S], 1 for real tokens.
      segment_ids: int32 [B,S].
      is_training: Whether dropout is applied.

    Raises:
      ValueError: Sizes that do not go together, or dropout where the op is the encoder.
    """
    options = modeling.current_options()
    if options.use_tensorflow and options.taps is None:
        model = bert_compat.modeling().BertModel(
            config=config,
            is_training=is_training,
            input_ids=input_ids,
            input_mask=input_mask,
            token_type_ids=segment_ids,
            use_one_hot_embeddings=False,
        )
        layers = model.get_all_encoder_layers()
        return Bert(layers if options.all_layers else layers[-1:], model.get_pooled_output())
    epsilon = getattr(config, "layer_norm_eps", build_settings.current_layer_norm_epsilon())
    with build_settings.layer_norm_epsilon(epsilon), _tf1.variable_scope(None, "bert"):
        with _tf1.variable_scope("embeddings"):
            embedded = _embeddings(config, input_ids, segment_ids, is_training)
        with _tf1.variable_scope("encoder"):
            layers = _encoder(config, embedded, input_mask, options, is_training)
        with _tf1.variable_scope("pooler"):
            initializer = _initializer(config)
            first = layers[-1][:, 0]
            pooled = bert_layers.dense(first, config.hidden_size, tf.tanh, initializer)
    return Bert(layers, pooled)


def _initializer(config: Any) -> Any:
    return _tf1.truncated_normal_initializer(stddev=config.initializer_range)


def _embeddings(
    config: Any, input_ids: tf.Tensor, segment_ids: tf.Tensor, is_training: bool
) -> tf.Tensor:
    """Words', segments' and positions' embeddings with layer norm and dropout, [B,S,H]."""
    dtype = build_settings.current_floatx()

    def table(name: str, rows: int) -> tf.Tensor:
        return get_variable(name, [rows, config.hidden_size], dtype, _initializer(config))

    # Reshaped as in google's graph: with other shapes TensorFlow fuses other operations behind, and
    # a training would end with other last bits than one through google's model.
    batch, length = tf.unstack(tf.shape(input_ids))
    words = tf.nn.embedding_lookup(table("word_embeddings", config.vocab_size), input_ids)
    output = tf.reshape(words, [batch, length, config.hidden_size])
    segments = table("token_type_embeddings", config.type_vocab_size)
    # As google's a product: so few rows would be a bottleneck of a lookup's gradient.
    one_hot = tf.one_hot(tf.reshape(segment_ids, [-1]), config.type_vocab_size, dtype=dtype)
    output += tf.reshape(tf.matmul(one_hot, segments), [batch, length, config.hidden_size])
    positions = table("position_embeddings", config.max_position_embeddings)
    enough = _tf1.assert_less_equal(
        length,
        config.max_position_embeddings,
        message="a sequence is longer than max_position_embeddings",
    )
    with tf.control_dependencies([enough]):
        rows = tf.slice(positions, [0, 0], tf.stack([length, -1]))
        output += tf.reshape(rows, [1, length, config.hidden_size])
    output = bert_layers.layer_norm(output)
    return bert_layers.dropout(output, config.hidden_dropout_prob if is_training else 0)


def _encoder(
    config: Any,
    embedded: tf.Tensor,
    input_mask: tf.Tensor,
    options: modeling.EncoderOptions,
    is_training: bool,
) -> list[tf.Tensor]:
    """The encoder of the options, [B,S,H] -> [B,S,H] of every layer, or of the last alone."""
    sizes = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "intermediate_act_fn": modeling.activation(config.hidden_act),
        "hidden_dropout_prob": config.hidden_dropout_prob if is_training else 0,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob if is_training else 0,
        "initializer_range": config.initializer_range,
        "do_return_all_layers": options.all_layers,
    }
    if options.taps is not None:
        # Every query has the same keys.
        keys = tf.cast(input_mask, embedded.dtype)[:, tf.newaxis]
        mask = tf.ones_like(embedded[:, :, :1]) * keys
        compute_type = tf.bfloat16 if options.mixed_precision else None
        output = point_encoder.transformer_model(
            embedded, mask, **sizes, taps=options.taps, compute_type=compute_type
        )
        return list(output) if options.all_layers else [output]
    lengths, mask = masks.lengths_and_mask(input_mask, embedded.dtype, options.remove_padding)
    output = modeling.transformer_model(
        embedded, mask, **sizes, sequence_length=lengths, options=options
    )
    return list(output) if options.all_layers else [output]
