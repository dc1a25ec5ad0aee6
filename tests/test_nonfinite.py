"""NaN and infinity come out of the ops as they come out of TensorFlow's own graph."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
from conftest import GPU_TEST_DEVICE

from fastertransformer_tf import ops

HEADS, SIZE, INNER, SEQ_LEN = 2, 8, 24, 6
HIDDEN = HEADS * SIZE
ACTIVATIONS = {
    "gelu_tanh": lambda x: tf.nn.gelu(x, approximate=True),
    "gelu_erf": tf.nn.gelu,
    "relu": tf.nn.relu,
}


def layer_norm(x, gamma, beta):
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-12)


def tensorflow_layer(x, mask, w, activation):
    """One layer of google-research/bert, modeling.py, in TensorFlow's own ops; x [B,S,H]."""
    batch = x.shape[0]

    def heads(name):
        y = tf.matmul(x, w[f"attr_{name}_kernel"]) + w[f"attr_{name}_bias"]
        return tf.transpose(tf.reshape(y, [batch, SEQ_LEN, HEADS, SIZE]), [0, 2, 1, 3])

    scores = tf.matmul(heads("q"), heads("k"), transpose_b=True) / np.float32(np.sqrt(SIZE))
    scores += (1 - mask[:, None]) * -10000.0
    context = tf.matmul(tf.nn.softmax(scores), heads("v"))
    context = tf.reshape(tf.transpose(context, [0, 2, 1, 3]), [batch, SEQ_LEN, HIDDEN])
    y = tf.matmul(context, w["attr_output_kernel"]) + w["attr_output_bias"] + x
    y = layer_norm(y, w["attr_output_layernorm_gamma"], w["attr_output_layernorm_beta"])
    inner = ACTIVATIONS[activation](tf.matmul(y, w["inter_kernel"]) + w["inter_bias"])
    out = tf.matmul(inner, w["output_kernel"]) + w["output_bias"] + y
    return layer_norm(out, w["output_layernorm_gamma"], w["output_layernorm_beta"])


def kind(values):
    """0 a number, 1 -inf, 2 inf, 3 NaN."""
    values = np.asarray(values, np.float32)
    return np.select([np.isnan(values), values == np.inf, values == -np.inf], [3, 2, 1], 0)


def compare(x, mask, weights, activation, device, use_mask=True, exact=True, atol=1e-4):
    """The op's special values are TensorFlow's; the finite ones are close.

    With `exact` false only that they are special: of an infinite gamma TensorFlow makes
    x * inf - mean * inf, which is NaN or infinite by the signs of x and mean; the definition,
    (x - mean) * inf, is infinite.
    """
    with tf.device("/CPU:0"):
        want = tensorflow_layer(tf.constant(x), tf.constant(mask), weights, activation).numpy()
    with tf.device(device):
        [got] = ops.bert_encoder(
            tf.constant(x), None, tf.constant(mask) if use_mask else None,
            [{key: tf.constant(value) for key, value in weights.items()}], head_num=HEADS,
            size_per_head=SIZE, activation=activation,
        )  # fmt: skip
    got = got.numpy()
    if exact:
        np.testing.assert_array_equal(kind(got), kind(want))
    np.testing.assert_array_equal(kind(got) == 0, kind(want) == 0)
    finite = kind(want) == 0
    np.testing.assert_allclose(got[finite], want[finite], atol=atol)
    return kind(want)


DEVICES = [
    pytest.param("/CPU:0", id="cpu"),
    pytest.param(GPU_TEST_DEVICE, id="gpu", marks=pytest.mark.gpu),
]
VALUES = [np.nan, np.inf, -np.inf]


@pytest.fixture
def case(rng):
    x = rng.normal(size=(2, SEQ_LEN, HIDDEN)).astype(np.float32)
    mask = (rng.random((2, SEQ_LEN, SEQ_LEN)) < 0.7).astype(np.float32)
    mask[:, :, 0] = 1
    [weights] = reference.random_layers(rng, 1, HIDDEN, INNER)
    return x, mask, weights


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("use_mask", [True, False])
def test_weights(case, device, activation, use_mask):
    x, mask, weights = case
    mask = mask if use_mask else np.ones_like(mask)
    for name in ops.LAYER_WEIGHTS:
        for value in VALUES:
            changed = dict(weights, **{name: weights[name].copy()})
            changed[name].flat[changed[name].size // 3] = value
            exact = not (name.endswith("gamma") and np.isinf(value))
            special = compare(x, mask, changed, activation, device, use_mask, exact)
            if not (activation == "relu" and name == "inter_bias" and value < 0):
                assert special.any(), f"{name} = {value}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [*VALUES, 1e18, -1e18])
def test_real_rows(case, device, value):
    x, mask, weights = case
    for position in [(0, 0, 0), (1, 2, 7)]:
        changed = x.copy()
        changed[position] = value
        compare(changed, mask, weights, "gelu_tanh", device)
        compare(changed, np.ones_like(mask), weights, "gelu_tanh", device, use_mask=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [*VALUES, 0.5, -2.0, 1e30])
def test_masks(case, device, value):
    x, mask, weights = case
    changed = mask.copy()
    changed[0, 1, 2] = value
    special = compare(x, changed, weights, "gelu_tanh", device)
    # Another query's row, and another sequence, are untouched.
    assert not special[0, 0].any() and not special[1].any()
    # A row that is masked as a whole keeps score - 10000 to 1e-3, here and in TensorFlow.
    changed = mask.copy()
    changed[1, 3, :] = value
    compare(x, changed, weights, "gelu_tanh", device, atol=2e-2)
