"""The four ops on the CPU against the float64 reference."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
import reference
import tensorflow as tf
import tolerances

from fastertransformer_tf import ops

DTYPES = ["float32", "float16", "bfloat16"]


def case(rng, batch, seq_len, heads, size, num_layers=1, dtype="float32", inner=None):
    """Random hidden states and weights as tensors, and the same values in NumPy."""
    hidden_size = heads * size
    hidden = tf.cast(rng.normal(size=(batch, seq_len, hidden_size)), dtype)
    layers = [
        {name: tf.cast(value, dtype) for name, value in layer.items()}
        for layer in reference.random_layers(rng, num_layers, hidden_size, inner)
    ]
    return hidden, layers, hidden.numpy(), [{k: v.numpy() for k, v in x.items()} for x in layers]


def make_mask(rng, kind, lengths, seq_len):
    """A [B,S,S] float32 mask; every value is exact in all three types."""
    batch = len(lengths)
    if kind == "prefix":
        rows = reference.valid_rows(lengths, seq_len).astype(np.float32)
        return np.repeat(rows[:, None, :], seq_len, axis=1)
    if kind == "causal":
        return np.repeat(np.tril(np.ones((1, seq_len, seq_len), np.float32)), batch, axis=0)
    if kind == "random":
        mask = rng.integers(0, 2, (batch, seq_len, seq_len)).astype(np.float32)
        mask[:, :, 0] = 1  # every query of a sequence that is not empty sees a key
        return mask
    # Not binary: small additions to the scores that all types hold exactly.
    return (1 - rng.integers(0, 3, (batch, seq_len, seq_len)) * 2.0**-7).astype(np.float32)


def offsets_packed(lengths, seq_len):
    """sequence_id_offset and trt_seqlen_offset of packed rows (as the op documents them)."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.concatenate(
        [np.full(n, b * seq_len - ends[b]) for b, n in enumerate(lengths)] or [[]]
    ).astype(np.int32)
    return ids, ends


def offsets_padded(lengths, seq_len):
    """trt_seqlen_offset of padded rows."""
    rows = [[b * seq_len, b * seq_len + n] for b, n in enumerate(lengths)]
    return np.array(sum(rows, []) + [len(lengths) * seq_len], np.int32)


def transformer(hidden, layer, mask, ids, trt, heads, size, **attributes):
    """Calls BertTransformer by keyword."""
    return ops.bert_transformer(
        from_tensor=hidden, to_tensor=hidden, attr_mask=mask, sequence_id_offset=ids,
        amax_list=tf.zeros([0]), trt_seqlen_offset=trt, head_num=heads, size_per_head=size,
        **layer, **attributes,
    )  # fmt: skip


@pytest.mark.parametrize(
    "seq_len,heads,size",
    [(1, 12, 64), (7, 3, 40), (97, 2, 64), (97, 12, 32), (384, 4, 32), (1024, 2, 64), (7, 16, 64),
     (17, 8, 96)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remove_padding", [True, False])
def test_encoder_ragged(rng, dtype, seq_len, heads, size, remove_padding):
    lengths = np.array([seq_len, 0, (seq_len + 1) // 2], np.int32)
    hidden, layers, x, weights = case(rng, 3, seq_len, heads, size, dtype=dtype)
    x = x.astype(np.float32)
    valid = reference.valid_rows(lengths, seq_len)
    hidden = tf.cast(np.where(valid[..., None], x, np.nan), dtype)  # padding must not leak
    [out] = ops.bert_encoder(
        hidden, lengths, None, layers, head_num=heads, size_per_head=size,
        remove_padding=remove_padding,
    )  # fmt: skip
    [expected] = reference.encoder(np.where(valid[..., None], x, 0), weights, heads,
                                   lengths=lengths)  # fmt: skip
    out = out.numpy().astype(np.float64)
    tolerances.assert_close(out[valid], expected[valid], dtype)
    if remove_padding:
        assert np.all(out[~valid] == 0)


@pytest.mark.parametrize("kind", ["prefix", "causal", "random", "fraction"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remove_padding", [True, False])
def test_masks(rng, dtype, kind, remove_padding):
    heads, size, seq_len = 4, 32, 29
    lengths = np.array([29, 11, 0, 1], np.int32)
    hidden, layers, x, weights = case(rng, 4, seq_len, heads, size, 2, dtype, inner=192)
    mask = make_mask(rng, kind, lengths, seq_len)
    valid = reference.valid_rows(lengths, seq_len)
    outs = ops.bert_encoder(
        hidden, lengths, tf.cast(mask[:, None], dtype), layers, head_num=heads,
        size_per_head=size, num_outputs=2, remove_padding=remove_padding,
    )  # fmt: skip
    expected = reference.encoder(x, weights, heads, lengths=lengths, mask=mask)
    for out, want in zip(outs, expected, strict=True):
        tolerances.assert_close(out.numpy()[valid], want[valid], dtype)

    # One layer: packed, the lengths count as well; padded, the mask alone decides.
    if remove_padding:
        ids, trt = offsets_packed(lengths, seq_len)
        rows, want = tf.boolean_mask(hidden, valid), expected[0][valid]
    else:
        ids, trt = np.zeros([0], np.int32), offsets_padded(lengths, seq_len)
        rows, want = hidden, reference.encoder(x, weights[:1], heads, mask=mask)[0]
    out = transformer(
        rows, layers[0], tf.cast(mask, dtype), ids, trt, heads, size, remove_padding=remove_padding
    )
    # A query with no key left: all scores are near -10000, where float32 steps by 2**-10, so the
    # definition itself (TensorFlow's graph too) is only this exact there.
    seen = mask.max(axis=-1) > 0
    seen = seen[valid] if remove_padding else seen
    tolerances.assert_close(out.numpy()[seen], want[seen], dtype)
    unseen = out.numpy()[~seen].astype(np.float64)
    bound = max(5e-3, tolerances.ENCODER[dtype].atol)
    np.testing.assert_allclose(unseen, want[~seen], atol=bound, rtol=3e-2)


@pytest.mark.parametrize("batch,seq_len", [(0, 5), (3, 0), (2, 4)])
@pytest.mark.parametrize("remove_padding", [True, False])
def test_nothing_to_do(rng, batch, seq_len, remove_padding):
    hidden, layers, _, _ = case(rng, batch, seq_len, 2, 8)
    lengths = np.zeros([batch], np.int32)
    [out] = ops.bert_encoder(hidden, lengths, None, layers, head_num=2, size_per_head=8)
    assert out.shape == hidden.shape and np.all(out.numpy() == 0)
    mask = tf.ones([batch, seq_len, seq_len])
    ids, trt = offsets_packed(lengths, seq_len)
    if remove_padding:
        rows = tf.zeros([0, 16])
    else:
        rows, trt = hidden, offsets_padded(lengths, seq_len)
    out = transformer(rows, layers[0], mask, ids, trt, 2, 8, remove_padding=remove_padding)
    assert out.shape == rows.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_ops(rng, dtype):
    lengths = np.array([2, 4, 0, 1], np.int32)
    x = tf.cast(rng.normal(size=(4, 4, 24)), dtype)
    packed, ids = ops.build_mask_remove_padding(x, lengths)
    np.testing.assert_array_equal(ids, offsets_packed(lengths, 4)[0])
    valid = reference.valid_rows(lengths, 4)
    np.testing.assert_array_equal(packed.numpy(), x.numpy()[valid])
    out = ops.rebuild_padding(packed, ids, tf.ones([4, 1, 4, 4], dtype))
    np.testing.assert_array_equal(out.numpy(), np.where(valid[..., None], x.numpy(), 0))


@pytest.mark.parametrize("is_weight_const", [False, True])
def test_threads_share_a_kernel(rng, is_weight_const):
    heads, size = 2, 64
    hidden, layers, x, weights = case(rng, 4, 33, heads, size, 2)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None], tf.float32), tf.TensorSpec([None], tf.int32)
        ]
    )  # fmt: skip
    def run(inputs, lengths):
        return ops.bert_encoder(
            inputs, lengths, None, layers, head_num=heads, size_per_head=size,
            is_weight_const=is_weight_const,
        )[0]  # fmt: skip

    every = [rng.integers(0, 34, 4).astype(np.int32) for _ in range(12)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outs = list(pool.map(lambda lengths: run(hidden, lengths).numpy(), every))
    for out, lengths in zip(outs, every, strict=True):
        expected = reference.encoder(x, weights, heads, lengths=lengths)[-1]
        tolerances.assert_close(out, reference.zero_padding(expected, lengths), "float32")


def test_variable_may_change_between_calls(rng):
    hidden, layers, x, weights = case(rng, 2, 9, 2, 16)
    variable = tf.Variable(layers[0]["inter_kernel"])

    @tf.function
    def run():
        layer = dict(layers[0], inter_kernel=variable)
        return ops.bert_encoder(hidden, [9, 9], None, [layer], head_num=2, size_per_head=16)[0]

    first = run().numpy()
    tolerances.assert_close(first, reference.encoder(x, weights, 2)[0], "float32")
    variable.assign(variable * -0.5)
    weights[0]["inter_kernel"] = variable.numpy()
    second = run().numpy()
    tolerances.assert_close(second, reference.encoder(x, weights, 2)[0], "float32")
    assert np.abs(first - second).max() > 0.01


def test_chain_of_layers_in_a_function(rng):
    """The original tools' graph: pack once, one op per layer, rebuild once; sizes unknown."""
    heads, size = 3, 16
    hidden, layers, x, weights = case(rng, 3, 8, heads, size, 2)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None]), tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, 1, None, None]),
        ]
    )  # fmt: skip
    def run(inputs, lengths, mask):
        rows, ids = ops.build_mask_remove_padding(inputs, lengths)
        trt = tf.concat([[0], tf.cumsum(lengths)], 0)
        for layer in layers:
            rows = transformer(rows, layer, mask, ids, trt, heads, size, is_weight_const=True)
        return ops.rebuild_padding(rows, ids, mask)

    for lengths in ([8, 0, 3], [1, 7, 8]):
        out = run(hidden, lengths, tf.ones([3, 1, 8, 8])).numpy()
        expected = reference.encoder(x, weights, heads, lengths=lengths)[-1]
        tolerances.assert_close(out, reference.zero_padding(expected, lengths), "float32")
