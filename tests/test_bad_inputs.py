"""Bad inputs give InvalidArgument with name, actual and expected, and the process lives on."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from fastertransformer_tf import ops

HEADS, SIZE, BATCH, SEQ_LEN, INNER = 2, 8, 3, 5, 24
HIDDEN = HEADS * SIZE
LENGTHS = [2, 5, 1]
SHAPES = {
    name: {"attr": (HIDDEN, HIDDEN), "inter": (HIDDEN, INNER), "output": (INNER, HIDDEN)}[
        name.split("_")[0]
    ][0 if name.endswith("kernel") else 1 :]
    for name in ops.LAYER_WEIGHTS
}


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


def check_error(error, name):
    message = str(error.value)
    assert name in message and "expected" in message.lower(), message


GOOD = {packed: run(good_inputs(packed), packed) for packed in (True, False)}
VALUE_INPUTS = {True: ["sequence_id_offset", "trt_seqlen_offset"], False: ["trt_seqlen_offset"]}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data(), packed=st.booleans())
def test_bert_transformer(data, packed):
    inputs = good_inputs(packed)
    if data.draw(st.booleans(), "a value"):
        # Any other value at a place whose value is fixed by the rest.
        name = data.draw(st.sampled_from(VALUE_INPUTS[packed]))
        fixed = range(len(inputs[name]))
        if name == "trt_seqlen_offset" and not packed:
            fixed = fixed[::2]
        place = data.draw(st.sampled_from(list(fixed)))
        old = int(inputs[name][place])
        value = data.draw(st.integers(-(2**31), 2**31 - 1).filter(lambda v: v != old))
        inputs[name][place] = value
        # With trt_seqlen_offset changed it may be sequence_id_offset that then disagrees with it.
        named, actual = name, " is "
    else:
        # Another size along one axis.
        name = data.draw(st.sampled_from(["from_tensor", "to_tensor", *SHAPES]))
        shape = list(inputs[name].shape)
        axis = data.draw(st.integers(0, len(shape) - 1))
        old = shape[axis]
        shape[axis] = data.draw(st.integers(0, 40).filter(lambda v: v != old))
        inputs[name] = np.zeros(shape, np.float32)
        if name == "from_tensor":  # else it would be to_tensor that differs from it
            inputs["to_tensor"] = inputs[name]
        # inter_kernel gives the inner size: the others are then the ones that disagree.
        named = "inter_" if name == "inter_kernel" else name
        actual = f"shape [{shape[0]}" if name != "inter_kernel" else "shape ["
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        run(inputs, packed)
    check_error(error, named)
    assert actual in str(error.value)
    np.testing.assert_array_equal(run(good_inputs(packed), packed), GOOD[packed])


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
    inputs = good_inputs(False)
    layer = {key: inputs[key] for key in ops.LAYER_WEIGHTS}
    arguments = {
        "hidden_states": np.ones((BATCH, SEQ_LEN, HIDDEN), np.float32),
        "sequence_length": LENGTHS,
        "attention_mask": None,
        "layers": [layer, layer],
        "head_num": HEADS,
        "size_per_head": SIZE,
    }
    ops.bert_encoder(**arguments)
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        ops.bert_encoder(**{**arguments, **change})
    check_error(error, name)


@pytest.mark.parametrize("offsets", [[0, 0, -1], [-1, 0, 0], [0, 0, 2], [0, -1, 0], [0, 0]])
def test_rebuild_padding(offsets):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        ops.rebuild_padding(tf.zeros([3, 8]), offsets, tf.ones([2, 2, 2]))
    check_error(error, "sequence_id_offset")


@pytest.mark.parametrize("lengths", [[1, 3], [-1, 1], [1]])
def test_build_mask_remove_padding(lengths):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        # Unknown sizes, so that the kernel checks, not the shape function.
        signature = [tf.TensorSpec([None, 2, 8]), tf.TensorSpec([None], tf.int32)]
        function = tf.function(ops.build_mask_remove_padding, input_signature=signature)
        function(tf.zeros([2, 2, 8]), tf.constant(lengths))
    check_error(error, "sequence_length")


@pytest.mark.parametrize("mode", [1, 2])
def test_int8_is_not_in_this_version(mode):
    with pytest.raises(tf.errors.UnimplementedError, match=f"int8_mode is {mode}"):
        ops.bert_transformer(
            **good_inputs(True), head_num=HEADS, size_per_head=SIZE, int8_mode=mode
        )
    with pytest.raises(tf.errors.UnimplementedError, match=f"int8_mode is {mode}"):
        ops.rebuild_padding(tf.zeros([0, 8]), np.zeros(0, np.int32), tf.ones([1, 2, 2]),
                            int8_mode=mode)  # fmt: skip
