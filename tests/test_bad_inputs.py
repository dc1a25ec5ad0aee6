"""Bad inputs give InvalidArgument with name, actual and expected, and the process lives on."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from fastertransformer_tf import ops, spec

HEADS, SIZE, BATCH, SEQ_LEN, INNER = 2, 8, 3, 5, 24
HIDDEN = HEADS * SIZE
LENGTHS = [2, 5, 1]
SHAPES = {weight.op_input: weight.sizes(HIDDEN, INNER) for weight in spec.LAYER_WEIGHTS}


def good_inputs(packed):
    """Valid inputs of BertTransformer."""
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    tokens = sum(LENGTHS) if packed else BATCH * SEQ_LEN
    ends = np.cumsum([0, *LENGTHS])
    inputs["from_tensor"] = rng.normal(size=(tokens, HIDDEN)).astype(np.float32)
    inputs["to_tensor"] = inputs["from_tensor"]
    inputs["attr_mask"] = np.ones((BATCH, SEQ_LEN, SEQ_LEN), np.float32)
    inputs["amax_list"] = np.zeros(0, np.float32)
    if packed:
        ids = [b * SEQ_LEN - ends[b] for b, n in enumerate(LENGTHS) for _ in range(n)]
        trt = ends
    else:
        ids = []
        trt = [0, 2, 5, 10, 10, 11, 15]
    inputs["sequence_id_offset"] = np.array(ids, np.int32)
    inputs["trt_seqlen_offset"] = np.array(trt, np.int32)
    return inputs


def run(inputs, packed):
    return ops.bert_transformer(
        **inputs, head_num=HEADS, size_per_head=SIZE, remove_padding=packed
    ).numpy()


GOOD = {packed: run(good_inputs(packed), packed) for packed in (True, False)}
VALUE_INPUTS = {True: ["sequence_id_offset", "trt_seqlen_offset"], False: ["trt_seqlen_offset"]}


def resize(data, array, smallest=0):
    """Zeros of the array's shape but for one axis, and that axis."""
    axis = data.draw(st.integers(0, array.ndim - 1), "axis")
    shape = list(array.shape)
    sizes = st.integers(smallest, 40).filter(lambda size: size != array.shape[axis])
    shape[axis] = data.draw(sizes, "size")
    return np.zeros(shape, array.dtype), axis


def put_bad_length(data, lengths):
    """Puts a length that is not 0 to S somewhere; returns what the message says of it."""
    place = data.draw(st.integers(0, BATCH - 1), "place")
    value = data.draw(st.integers(-(2**31), -1) | st.integers(SEQ_LEN + 1, 2**31 - 1), "value")
    lengths[place] = value
    return f"sequence_length[{place}] is {value}"


def check_bad(call, names, actual=""):
    """`call` fails with a message that has one of `names`, `actual` and what is expected."""
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        call()
    message = str(error.value)
    assert any(name in message for name in names), message
    assert actual in message and "expected" in message, message


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data(), packed=st.booleans())
def test_bert_transformer(data, packed):
    inputs = good_inputs(packed)
    kind = data.draw(st.sampled_from(["value", "shape", "rank"]), "kind")
    if kind == "value":
        # Any other value at a place whose value is fixed by the rest.
        name = data.draw(st.sampled_from(VALUE_INPUTS[packed]))
        fixed = range(len(inputs[name]))
        if name == "trt_seqlen_offset" and not packed:
            fixed = fixed[::2]
        place = data.draw(st.sampled_from(list(fixed)))
        old = int(inputs[name][place])
        others = st.integers(-(2**31), 2**31 - 1).filter(lambda value: value != old)
        inputs[name][place] = data.draw(others, "value")
        # With trt_seqlen_offset changed it may be sequence_id_offset that then disagrees with it.
        names, actual = [name], " is "
    elif kind == "shape":
        # Another size along one axis.
        name = data.draw(
            st.sampled_from(["from_tensor", "to_tensor", "attr_mask", *VALUE_INPUTS[packed],
                             *SHAPES])
        )  # fmt: skip
        inputs[name], axis = resize(data, inputs[name])
        names, actual = [name], f"shape [{inputs[name].shape[0]}"
        if name == "from_tensor":  # else it would be to_tensor that differs from it
            inputs["to_tensor"] = inputs[name]
        if name == "inter_kernel":  # it gives the inner size: the others are those that disagree
            names, actual = ["inter_"], "shape ["
        if name == "attr_mask" and axis == 0:  # it gives the batch size: likewise
            names = ["from_tensor", "sequence_id_offset", "trt_seqlen_offset"]
            actual = "shape ["
        if name == "sequence_id_offset":  # it gives the number of tokens: likewise
            names.append("from_tensor")
            actual = "shape ["
    else:
        name = data.draw(st.sampled_from(["from_tensor", "attr_mask", *SHAPES]))
        inputs[name] = inputs[name].reshape((1,) * data.draw(st.sampled_from([2, 3])) + (
            inputs[name].shape))  # fmt: skip
        if name == "from_tensor":
            inputs["to_tensor"] = inputs[name]
        names, actual = [name], "shape [1,1"
    # Without INT8 it is not read: whatever it is, the error is about the input that is bad.
    scales = data.draw(st.lists(st.floats(width=32), max_size=3), "amax_list")
    inputs["amax_list"] = np.array(scales, np.float32)
    check_bad(lambda: run(inputs, packed), names, actual)
    good = dict(good_inputs(packed), amax_list=inputs["amax_list"])
    np.testing.assert_array_equal(run(good, packed), GOOD[packed])


def encoder_arguments(remove_padding=True):
    """Valid arguments of BertEncoder."""
    inputs = good_inputs(False)
    layer = {key: inputs[key] for key in ops.LAYER_WEIGHTS}
    return {
        "hidden_states": np.ones((BATCH, SEQ_LEN, HIDDEN), np.float32),
        "sequence_length": np.array(LENGTHS, np.int32),
        "attention_mask": np.ones((BATCH, SEQ_LEN, SEQ_LEN), np.float32),
        "layers": [layer, dict(layer)],
        "head_num": HEADS,
        "size_per_head": SIZE,
        "remove_padding": remove_padding,
    }


def run_encoder(arguments):
    return ops.bert_encoder(**arguments)[0].numpy()


GOOD_ENCODER = run_encoder(encoder_arguments())


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data(), remove_padding=st.booleans())
def test_bert_encoder_random(data, remove_padding):
    arguments = encoder_arguments(remove_padding)
    kind = data.draw(st.sampled_from(["length", "shape", "weight"]), "kind")
    if kind == "length":
        names, actual = ["sequence_length"], put_bad_length(data, arguments["sequence_length"])
    elif kind == "shape":
        name = data.draw(st.sampled_from(["hidden_states", "sequence_length", "attention_mask"]))
        # Lengths of shape [0] mean none.
        arguments[name], axis = resize(data, arguments[name], name == "sequence_length")
        names, actual = [name], f"shape [{arguments[name].shape[0]}"
        if name == "hidden_states" and axis < 2:  # it gives B and S: the others disagree
            names, actual = ["sequence_length", "attention_mask"], "shape ["
    else:
        layer = data.draw(st.integers(0, 1), "layer")
        name = data.draw(st.sampled_from(list(SHAPES)))
        weights = arguments["layers"][layer]
        weights[name], _ = resize(data, weights[name])
        names, actual = [name], f"shape [{weights[name].shape[0]}"
        if name == "inter_kernel" and layer == 0:  # it gives the inner size
            names, actual = ["inter_"], "shape ["
    check_bad(lambda: run_encoder(arguments), names, actual)
    np.testing.assert_array_equal(run_encoder(encoder_arguments()), GOOD_ENCODER)


# Sizes unknown to the graph, so that the kernels check, not the shape functions.
@tf.function(
    input_signature=[tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.int32)],
    autograph=False,
)
def remove_padding_op(x, lengths):
    return ops.build_mask_remove_padding(x, lengths)


@tf.function(
    input_signature=[
        tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.int32),
        tf.TensorSpec(None, tf.float32),
    ],
    autograph=False,
)  # fmt: skip
def rebuild_padding_op(rows, ids, mask):
    return ops.rebuild_padding(rows, ids, mask)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data())
def test_build_mask_remove_padding_random(data):
    x = np.ones((BATCH, SEQ_LEN, HIDDEN), np.float32)
    lengths = np.array(LENGTHS, np.int32)
    good_rows, good_ids = remove_padding_op(x, lengths)
    bad_lengths = lengths.copy()
    kind = data.draw(st.sampled_from(["value", "batch", "rank"]), "kind")
    if kind == "value":
        names, actual = ["sequence_length"], put_bad_length(data, bad_lengths)
        bad = x
    elif kind == "batch":
        size = data.draw(st.integers(0, 40).filter(lambda n: n != BATCH), "size")
        if data.draw(st.booleans(), "lengths"):
            bad, bad_lengths = x, np.zeros(size, np.int32)
        else:
            bad = np.zeros((size, SEQ_LEN, HIDDEN), np.float32)
        names, actual = ["sequence_length"], f"shape [{len(bad_lengths)}]"
    else:
        rank = data.draw(st.sampled_from([0, 1, 2, 4]), "rank")
        bad = np.ones((1,) * rank, np.float32)
        names, actual = ["from_tensor"], f"shape [{','.join(['1'] * rank)}]"
    check_bad(lambda: remove_padding_op(bad, bad_lengths), names, actual)
    rows, ids = remove_padding_op(x, lengths)
    np.testing.assert_array_equal(rows, good_rows)
    np.testing.assert_array_equal(ids, good_ids)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data())
def test_rebuild_padding_random(data):
    inputs = good_inputs(True)
    good = (inputs["from_tensor"], inputs["sequence_id_offset"], inputs["attr_mask"])
    want = rebuild_padding_op(*good).numpy()
    rows, ids, mask = (array.copy() for array in good)
    kind = data.draw(st.sampled_from(["value", "rows", "ids", "mask"]), "kind")
    names, actual = ["sequence_id_offset"], "shape ["
    if kind == "value":
        # A row that is not above the one before, or beyond the last.
        place = data.draw(st.integers(0, len(ids) - 1), "place")
        previous = place - 1 + int(ids[place - 1]) if place else -1
        value = data.draw(
            st.integers(-(2**31), previous - place)
            | st.integers(BATCH * SEQ_LEN - place, 2**31 - 1), "value"
        )  # fmt: skip
        ids[place] = value
        actual = f"sequence_id_offset[{place}] is {value}"
    elif kind == "rows":
        rows, axis = resize(data, rows)
        if axis == 1:  # any H is good
            rows = rows[None]
            names, actual = ["from_tensor"], "shape [1,"
    elif kind == "ids":
        ids, _ = resize(data, ids)
        actual = f"shape [{len(ids)}]"
    else:
        mask, axis = resize(data, mask, SEQ_LEN + 1)
        names, actual = ["atten_mask"], f"shape [{mask.shape[0]}"
        if axis == 0:  # more sequences are good, so fewer than the rows need
            mask = np.ones((0, SEQ_LEN, SEQ_LEN), np.float32)
            names, actual = ["sequence_id_offset"], "sequence_id_offset[0] is 0"
    check_bad(lambda: rebuild_padding_op(rows, ids, mask), names, actual)
    np.testing.assert_array_equal(rebuild_padding_op(*good), want)


@pytest.mark.parametrize(
    "change,name",
    [
        ({"sequence_length": [2, 6, 1]}, "sequence_length[1] is 6"),
        ({"sequence_length": [2, 5, -1]}, "sequence_length[2] is -1"),
        ({"sequence_length": [2, 5]}, "sequence_length"),
        ({"sequence_length": np.zeros(0, np.int32)}, "sequence_length"),
        ({"attention_mask": np.ones((3, 5, 4), np.float32)}, "attention_mask"),
        ({"attention_mask": np.ones((2, 5, 5), np.float32)}, "attention_mask"),
        ({"attention_mask": np.ones((3, 2, 5, 5), np.float32)}, "attention_mask"),
        ({"num_outputs": 3}, "num_outputs"),
        ({"layernorm_epsilon": -1.0}, "layernorm_epsilon"),
    ],
)
def test_bert_encoder(change, name):
    arguments = {**encoder_arguments(), "attention_mask": None}
    run_encoder(arguments)
    check_bad(lambda: run_encoder({**arguments, **change}), [name])


@pytest.mark.parametrize("offsets", [[0, 0, -1], [-1, 0, 0], [0, 0, 2], [0, -1, 0], [0, 0]])
def test_rebuild_padding(offsets):
    check_bad(
        lambda: ops.rebuild_padding(tf.zeros([3, 8]), offsets, tf.ones([2, 2, 2])),
        ["sequence_id_offset"],
    )


@pytest.mark.parametrize("lengths", [[1, 3], [-1, 1], [1]])
def test_build_mask_remove_padding(lengths):
    check_bad(
        lambda: remove_padding_op(tf.zeros([2, 2, 8]), tf.constant(lengths)), ["sequence_length"]
    )


def test_rebuild_padding_knows_one_order():
    rows = tf.zeros([0, 8])
    offsets = np.zeros(0, np.int32)
    with pytest.raises(tf.errors.UnimplementedError, match="isCOL32 is true, expected false"):
        ops.rebuild_padding(rows, offsets, tf.ones([1, 2, 2]), isCOL32=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="int8_mode is 4, expected 0, 1, 2"):
        ops.rebuild_padding(rows, offsets, tf.ones([1, 2, 2]), int8_mode=4)
