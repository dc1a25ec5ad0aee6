"""The float64 reference against bert-tensorflow's own graph."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
from tolerances import assert_close

from fastertransformer_tf import spec
from fastertransformer_tf.models import bert_compat, modeling

_tf1 = tf.compat.v1


def tensorflow_layers(
    hidden: np.ndarray,
    layers: list[dict[str, np.ndarray]],
    num_heads: int,
    mask: np.ndarray,
    activation: str,
) -> list[np.ndarray]:
    """Runs bert-tensorflow's transformer_model in float32, all layers."""
    bert = bert_compat.modeling()
    options = modeling.EncoderOptions(use_tensorflow=True)
    with tf.Graph().as_default(), modeling.encoder_options(options), _tf1.Session() as session:
        outputs = bert.transformer_model(
            tf.constant(hidden),
            tf.constant(mask),
            hidden_size=hidden.shape[2],
            num_hidden_layers=len(layers),
            num_attention_heads=num_heads,
            intermediate_size=layers[0]["inter_bias"].shape[0],
            intermediate_act_fn=bert.get_activation(activation),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            do_return_all_layers=True,
        )
        variables = {v.op.name: v for v in _tf1.global_variables()}
        for index, layer in enumerate(spec.by_google_name(layers)):
            for name, value in layer.items():
                variables.pop(f"layer_{index}/{name}").load(value, session)
        assert not variables
        return session.run(outputs)


@pytest.mark.parametrize("activation", ["gelu", "gelu_erf", "relu"])
@pytest.mark.parametrize("use_lengths", [True, False])
def test_reference_equals_tensorflow(
    rng: np.random.Generator, activation: str, use_lengths: bool
) -> None:
    layers = reference.random_layers(rng, 3, 48, 80)
    hidden = rng.normal(size=(3, 9, 48)).astype(np.float32)
    if use_lengths:
        lengths = np.array([9, 4, 1])
        mask = np.repeat(reference.valid_rows(lengths, 9)[:, None, :], 9, axis=1)
    else:
        lengths = None
        mask = rng.random((3, 9, 9)) < 0.6
        mask[1, 2] = False  # A row that may attend to nothing.
    mask = mask.astype(np.float32)
    ours = reference.encoder(
        hidden,
        layers,
        4,
        lengths=lengths,
        mask=None if use_lengths else mask,
        activation={"gelu": "gelu_tanh"}.get(activation, activation),
    )
    theirs = tensorflow_layers(hidden, layers, 4, mask, activation)
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        # (1 - mask) * -10000 costs float32 about three digits of a fully masked row's scores.
        if use_lengths:
            assert_close(b, a, "float32")
        else:
            np.testing.assert_allclose(b, a, atol=3e-3)


def test_padding_never_reaches_real_rows(rng: np.random.Generator) -> None:
    layers = reference.random_layers(rng, 2, 32)
    hidden = rng.normal(size=(2, 6, 32)).astype(np.float32)
    lengths = [6, 2]
    clean = reference.encoder(hidden, layers, 2, lengths=lengths)[-1]
    hidden[1, 2:] = np.nan
    dirty = reference.encoder(hidden, layers, 2, lengths=lengths)[-1]
    valid = reference.valid_rows(lengths, 6)
    np.testing.assert_array_equal(dirty[valid], clean[valid])
