"""int8_mode of the ops on the CPU against integers in float64 (docs/int8.md)."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import reference_int8
import tensorflow as tf
import test_ops
import tolerances

from fastertransformer_tf import ops, spec

MODES = [1, 2, 3]


def tensors(layers, dtype):
    """The layers' weights as tensors: kernels int8, the others of `dtype`."""
    return [
        {name: tf.constant(w) if w.dtype == np.int8 else tf.cast(w, dtype) for name, w in x.items()}
        for x in layers
    ]


def rounded(layers, dtype):
    """The same values in NumPy."""
    return [{name: w.numpy() for name, w in layer.items()} for layer in tensors(layers, dtype)]


def check(outputs, expected, doubtful, lengths, dtype, mean=None):
    """Certain sequences agree to float32's precision, the others but for single integers."""
    mean = tolerances.INT8_MEAN[dtype] if mean is None else mean
    valid = reference.valid_rows(lengths, expected[0].shape[1])
    for out, want in zip(outputs, expected, strict=True):
        difference = np.abs(np.asarray(out).astype(np.float64) - want)
        assert difference[valid].mean() < mean
        if dtype == "float32":
            certain = valid & ~doubtful[:, None]
            assert np.all(difference[certain] < tolerances.INT8_CERTAIN)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", test_ops.DTYPES)
@pytest.mark.parametrize("remove_padding", [True, False])
def test_encoder(rng, mode, dtype, remove_padding):
    heads, size, inner, seq_len = 3, 8, 40, 9
    lengths = np.array([9, 0, 4, 1, 2, 2, 3, 1], np.int32)
    layers, lists = reference_int8.random_model(rng, 2, heads * size, inner)
    hidden = tf.cast(rng.normal(size=(len(lengths), seq_len, heads * size)), dtype)
    outputs = ops.bert_encoder(
        hidden, lengths, None, tensors(layers, dtype), head_num=heads, size_per_head=size,
        num_outputs=2, remove_padding=remove_padding, int8_mode=mode, amax_list=lists,
    )  # fmt: skip
    [last] = ops.bert_encoder(
        hidden, lengths, None, tensors(layers, dtype), head_num=heads, size_per_head=size,
        remove_padding=remove_padding, int8_mode=mode, amax_list=lists,
    )  # fmt: skip
    valid = reference.valid_rows(lengths, seq_len)
    np.testing.assert_array_equal(last.numpy()[valid], outputs[1].numpy()[valid])
    expected, doubtful = reference_int8.encoder(
        hidden.numpy().astype(np.float32), rounded(layers, dtype), lists, heads, mode, lengths
    )
    check(outputs, expected, doubtful, lengths, dtype)
    if remove_padding:
        assert np.all(last.numpy()[~valid] == 0)


@pytest.mark.parametrize("kind", ["prefix", "causal", "random", "fraction"])
@pytest.mark.parametrize("mode", MODES)
def test_masks(rng, kind, mode):
    heads, size, seq_len = 2, 8, 11
    lengths = np.array([11, 5, 1, 3], np.int32)
    layers, lists = reference_int8.random_model(rng, 1, heads * size, 24)
    hidden = rng.normal(size=(4, seq_len, heads * size)).astype(np.float32)
    mask = test_ops.make_mask(rng, kind, lengths, seq_len)
    outputs = ops.bert_encoder(
        hidden, lengths, mask, tensors(layers, "float32"), head_num=heads, size_per_head=size,
        int8_mode=mode, amax_list=lists,
    )  # fmt: skip
    expected, doubtful = reference_int8.encoder(
        hidden, layers, lists, heads, mode, lengths, mask.astype(np.float64)
    )
    check(outputs, expected, doubtful, lengths, "float32")


@pytest.mark.parametrize("activation", sorted(reference.ACTIVATIONS))
@pytest.mark.parametrize(
    "heads,size,inner,seq_len", [(1, 1, 1, 1), (3, 7, 13, 5), (2, 33, 70, 3), (4, 64, 1024, 130)]
)
def test_sizes(rng, activation, heads, size, inner, seq_len):
    lengths = np.array([seq_len, (seq_len + 1) // 2, 0], np.int32)
    layers, lists = reference_int8.random_model(rng, 1, heads * size, inner)
    hidden = rng.normal(size=(3, seq_len, heads * size)).astype(np.float32)
    for mode in MODES:
        outputs = ops.bert_encoder(
            hidden, lengths, None, tensors(layers, "float32"), head_num=heads, size_per_head=size,
            int8_mode=mode, amax_list=lists, activation=activation,
        )  # fmt: skip
        expected, doubtful = reference_int8.encoder(
            hidden, layers, lists, heads, mode, lengths, activation=activation
        )
        check(outputs, expected, doubtful, lengths, "float32")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("remove_padding", [True, False])
def test_single_layers_are_the_stack(rng, mode, dtype, remove_padding):
    """What a layer hands to the next in a tensor of type T is what the stack keeps as integers."""
    heads, size, seq_len = 2, 16, 6
    lengths = np.array([6, 2, 4], np.int32)
    layers, lists = reference_int8.random_model(rng, 3, heads * size, 64)
    weights = tensors(layers, dtype)
    hidden = tf.cast(rng.normal(size=(3, seq_len, heads * size)), dtype)
    stack = ops.bert_encoder(
        hidden, lengths, None, weights, head_num=heads, size_per_head=size, num_outputs=3,
        remove_padding=remove_padding, int8_mode=mode, amax_list=lists,
    )  # fmt: skip
    mask = tf.cast(test_ops.make_mask(rng, "prefix", lengths, seq_len), dtype)
    valid = reference.valid_rows(lengths, seq_len)
    ids, ends = test_ops.offsets_packed(lengths, seq_len)
    states, trt = hidden, test_ops.offsets_padded(lengths, seq_len)
    if remove_padding:
        states, trt = tf.boolean_mask(hidden, valid), ends
    for index, (layer, scales) in enumerate(zip(weights, lists, strict=True)):
        states = ops.bert_transformer(
            from_tensor=states, to_tensor=states, attr_mask=mask, sequence_id_offset=ids,
            amax_list=scales, trt_seqlen_offset=trt, head_num=heads, size_per_head=size, **layer,
            int8_mode=mode, layer_idx=index, layer_num=3, remove_padding=remove_padding,
        )  # fmt: skip
        got = states.numpy() if remove_padding else states.numpy()[valid]
        want = stack[index].numpy()[valid]
        if mode == 1 and dtype == "float16" and index > 0:
            # The stack keeps the residual in float32 on a CPU.
            assert np.abs(got.astype(np.float32) - want.astype(np.float32)).mean() < 2e-2
        else:
            np.testing.assert_array_equal(got, want)
        if mode > 1 and index < 2:  # integers
            steps = got.astype(np.float64) * 127 / scales[60]
            assert np.abs(steps - np.rint(steps)).max() < 0.2


def test_scales_are_weights_too(rng):
    """Other ranges for the same kernels give other results, call by call."""
    layers, lists = reference_int8.random_model(rng, 1, 8, 16)
    weights = tensors(layers, "float32")
    hidden = tf.constant(rng.normal(size=(1, 5, 8)).astype(np.float32))
    scales = tf.Variable(lists[0])
    lengths = np.array([5], np.int32)

    @tf.function(autograph=False)
    def run():
        return ops.bert_encoder(hidden, lengths, None, weights, head_num=1, size_per_head=8,
                                int8_mode=1, amax_list=[scales])[0]  # fmt: skip

    for factor in (1.0, 2.0, 1.0):
        changed = lists[0].copy()
        changed[80:-11] *= factor
        scales.assign(changed)
        expected, doubtful = reference_int8.encoder(hidden, layers, [changed], 1, 1, lengths)
        check([run()], expected, doubtful, lengths, "float32")


def call(rng, *, mode=1, dtype="float32", edit=None, lists=None, layers=None, fp8_mode=0):
    """Runs two layers of H = 8, I = 16; `edit` changes the scale lists."""
    made, scales = reference_int8.random_model(rng, 2, 8, 16)
    if edit is not None:
        edit(scales)
    return ops.bert_encoder(
        tf.zeros([1, 3, 8], dtype), [3], None, tensors(made if layers is None else layers, dtype),
        head_num=2, size_per_head=4, int8_mode=mode, amax_list=scales if lists is None else lists,
        fp8_mode=fp8_mode,
    )  # fmt: skip


def setter(layer, at, value):
    def edit(scales):
        scales[layer][at] = value

    return edit


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"mode": 4}, "int8_mode is 4, expected 0, 1, 2 or 3"),
        ({"mode": -1}, "int8_mode is -1, expected 0, 1, 2 or 3"),
        ({"mode": 0}, "the weight matrices are int8, expected float with int8_mode 0"),
        ({"lists": []}, "num_amax_lists is 0, expected 2 with int8_mode 1"),
        ({"lists": [np.ones(147, np.float32)] * 3}, "num_amax_lists is 3, expected 2"),
        ({"lists": [np.ones(146, np.float32)] * 2}, r"amax_list\[0\] has shape \[146\], expected "
                                                    r"\[147\]"),
        ({"edit": setter(1, 0, 0)}, r"amax_list\[1\] has 1 ranges .* float 0 is 0"),
        ({"edit": setter(0, 99, np.nan)}, r"amax_list\[0\] has 1 ranges .* float 99 is nan"),
        ({"edit": setter(0, 44, np.inf)}, r"float 44 is inf"),
        ({"mode": 2, "edit": setter(0, 60, 9)}, r"amax_list\[0\] ends with the range 9"),
    ],
)  # fmt: skip
def test_bad_scales(rng, arguments, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(rng, **arguments)


def test_float_matrices_are_refused(rng):
    layers = spec.random_layers(rng, 2, 8, 16)
    with pytest.raises(tf.errors.InvalidArgumentError,
                       match="matrices are float, expected int8 with int8_mode 2"):  # fmt: skip
        call(rng, mode=2, layers=layers)


@pytest.mark.parametrize(
    "mode,fp8_mode,message",
    [(1, 1, "fp8_mode is 1 and int8_mode is 1, expected one of them to be 0"),
     (0, 2, "fp8_mode is 2, expected 0 or 1"),
     (0, -1, "fp8_mode is -1, expected 0 or 1")],
)  # fmt: skip
def test_fp8_modes_that_there_are_not(rng, mode, fp8_mode, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(rng, mode=mode, fp8_mode=fp8_mode)


def test_fp8_by_a_cpu(rng):
    with (
        tf.device("/CPU:0"),
        pytest.raises(
            tf.errors.UnimplementedError, match="fp8_mode is 1: CPUs have no float8 products"
        ),
    ):
        call(rng, mode=0, fp8_mode=1)


def test_no_range_that_a_mode_does_not_read(rng):
    """Mode 1 keeps residuals and products as they are: their ranges may be anything."""

    def spoil(scales):
        for slot in (10, 14, 15):
            for values in scales:
                values[4 * slot] = np.nan

    assert np.all(np.isfinite(call(rng, mode=1, edit=spoil)[0].numpy()))
