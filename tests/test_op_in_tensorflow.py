"""The ops inside TensorFlow: saved functions, gradients, Keras, types, TF 1 variables."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf

from fastertransformer_tf import ops

HEADS, SIZE, INNER = 2, 8, 24
HIDDEN = HEADS * SIZE
LENGTHS = np.array([5, 3], np.int32)


def layers(rng, num_layers=2):
    return reference.random_layers(rng, num_layers, HIDDEN, INNER)


def hidden_states(rng):
    return rng.normal(size=(2, 5, HIDDEN)).astype(np.float32)


def encode(x, lengths, weights, **options):
    return ops.bert_encoder(
        x, lengths, None, weights, head_num=HEADS, size_per_head=SIZE, **options
    )


class Encoder(tf.Module):
    """A module with one saved function of each op."""

    def __init__(self, weights):
        super().__init__()
        self.layers = [{key: tf.Variable(value) for key, value in w.items()} for w in weights]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, HIDDEN]),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def encode(self, x, lengths):
        return encode(x, lengths, self.layers)[-1], encode(x, lengths, self.layers, num_outputs=2)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, HIDDEN]),
            tf.TensorSpec([None], tf.int64),
        ]
    )
    def encode_packed(self, x, lengths):
        rows, ids = ops.build_mask_remove_padding(x, lengths)
        seq_len = tf.shape(x)[1]
        mask = tf.ones([tf.shape(x)[0], seq_len, seq_len])
        offsets = tf.concat([[0], tf.cumsum(tf.cast(lengths, tf.int32))], 0)
        for layer in self.layers:
            rows = ops.bert_transformer(
                from_tensor=rows, to_tensor=rows, attr_mask=mask, sequence_id_offset=ids,
                amax_list=tf.zeros([0]), trt_seqlen_offset=offsets, head_num=HEADS,
                size_per_head=SIZE, **layer,
            )  # fmt: skip
        return ops.rebuild_padding(rows, ids, mask)


def test_saved_functions_load_and_save_again(rng, tmp_path):
    module, x = Encoder(layers(rng)), hidden_states(rng)
    last, outputs = module.encode(x, LENGTHS)
    packed = module.encode_packed(x, LENGTHS.astype(np.int64))
    for generation in range(3):
        folder = str(tmp_path / f"saved{generation}")
        tf.saved_model.save(module, folder)
        module = tf.saved_model.load(folder)
        again, all_again = module.encode(x, LENGTHS)
        np.testing.assert_array_equal(again, last)
        for one, other in zip(all_again, outputs, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(module.encode_packed(x, LENGTHS.astype(np.int64)), packed)


class EncoderLayer(tf.keras.layers.Layer):
    """BertEncoder as a user would wrap it."""

    def build(self, unused_shape):
        shapes = {
            "inter_kernel": [HIDDEN, INNER], "inter_bias": [INNER],
            "output_kernel": [INNER, HIDDEN],
        }  # fmt: skip
        self.encoder_weights = {}
        for key in ops.LAYER_WEIGHTS:
            square = [HIDDEN, HIDDEN] if key.endswith("kernel") else [HIDDEN]
            self.encoder_weights[key] = self.add_weight(
                name=key, shape=shapes.get(key, square),
                initializer="ones" if key.endswith("gamma") else "glorot_uniform"
                if key.endswith("kernel") else "zeros",
            )  # fmt: skip

    def call(self, x):
        weights = [{key: value.value for key, value in self.encoder_weights.items()}]
        return encode(x, None, weights)[-1]


def keras_model(frozen):
    inputs = tf.keras.Input([4], dtype="int32")
    embedding = tf.keras.layers.Embedding(10, HIDDEN)
    encoder = EncoderLayer()
    pooled = tf.keras.layers.GlobalAveragePooling1D()(encoder(embedding(inputs)))
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(2)(pooled))
    if frozen:
        embedding.trainable = encoder.trainable = False
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_keras_head_over_a_frozen_encoder_trains(rng, tmp_path):
    tokens, labels = rng.integers(0, 10, (16, 4)), rng.integers(0, 2, 16)
    model = keras_model(frozen=True)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(tokens, labels, epochs=1, verbose=0)
    after = [variable.numpy() for variable in model.trainable_variables]
    assert len(before) == 2 and any(np.any(a != b) for a, b in zip(before, after, strict=True))
    # What Keras exports loads and gives the same.
    model.export(str(tmp_path / "exported"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(
        loaded.serve(tokens.astype(np.int32)), model.predict(tokens, verbose=0), atol=1e-6
    )


def test_keras_refuses_to_train_the_encoder(rng):
    tokens, labels = rng.integers(0, 10, (4, 4)), rng.integers(0, 2, 4)
    with pytest.raises(Exception, match="BertEncoder has no gradient: it is for inference"):
        keras_model(frozen=False).fit(tokens, labels, epochs=1, verbose=0)


def calls(rng):
    """Each op as a function of one float tensor."""
    weights, x = layers(rng, 1), hidden_states(rng)
    rows, ids = (tensor.numpy() for tensor in ops.build_mask_remove_padding(x, LENGTHS))
    mask, offsets = np.ones((2, 5, 5), np.float32), np.array([0, 5, 8], np.int32)

    def transformer(value):
        return ops.bert_transformer(
            from_tensor=value, to_tensor=value, attr_mask=mask, sequence_id_offset=ids,
            amax_list=np.zeros(0, np.float32), trt_seqlen_offset=offsets, head_num=HEADS,
            size_per_head=SIZE, **weights[0],
        )  # fmt: skip

    return {
        "BertEncoder": (lambda value: encode(value, LENGTHS, weights)[-1], x),
        "BertTransformer": (transformer, rows),
        "BuildMaskRemovePadding": (
            lambda value: ops.build_mask_remove_padding(value, LENGTHS).output, x
        ),
        "RebuildPadding": (lambda value: ops.rebuild_padding(value, ids, mask), rows),
    }  # fmt: skip


@pytest.mark.parametrize(
    "op", ["BertEncoder", "BertTransformer", "BuildMaskRemovePadding", "RebuildPadding"]
)
@pytest.mark.parametrize("mode", ["eager", "function", "graph", "tape outside"])
def test_gradients_are_refused_in_one_sentence(rng, op, mode):
    call, value = calls(rng)[op]
    variable = tf.Variable(value)

    def gradient():
        with tf.GradientTape() as tape:
            y = call(variable * 1.0)
        return tape.gradient(y, variable)

    def outside():
        with tf.GradientTape() as tape:
            y = tf.function(lambda: call(variable * 1.0), autograph=False)()
        return tape.gradient(y, variable)

    def graph():
        with tf.Graph().as_default():
            source = tf.constant(np.asarray(value))
            return tf.gradients(call(source), source)

    run = {
        "eager": gradient,
        "function": tf.function(gradient, autograph=False),
        "graph": graph,
        "tape outside": outside,
    }[mode]
    with pytest.raises((NotImplementedError, tf.errors.UnimplementedError)) as error:
        run()
    assert f"{op} has no gradient: it is for inference. Train with" in str(error.value)


@pytest.mark.parametrize("traced", [False, True])
def test_head_over_a_stopped_encoder_trains(rng, traced):
    weights, x = layers(rng), tf.Variable(hidden_states(rng))
    head = tf.Variable(rng.normal(size=(HIDDEN, 2)).astype(np.float32))

    def step():
        with tf.GradientTape() as tape:
            y = tf.stop_gradient(encode(x, LENGTHS, weights)[-1])
            loss = tf.reduce_sum(tf.matmul(y[:, 0], head) ** 2)
        return y, tape.gradient(loss, head)

    y, gradient = (tf.function(step, autograph=False) if traced else step)()
    first = y.numpy()[:, 0]
    np.testing.assert_allclose(gradient, 2 * first.T @ (first @ head.numpy()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_types_of_lengths(rng, dtype):
    weights, x = layers(rng), hidden_states(rng)
    want = encode(x, LENGTHS, weights)[-1]
    np.testing.assert_array_equal(encode(x, LENGTHS.astype(dtype), weights)[-1], want)
    np.testing.assert_array_equal(encode(x, tf.constant(LENGTHS, dtype), weights)[-1], want)
    rows = ops.build_mask_remove_padding(x, LENGTHS.astype(dtype))
    np.testing.assert_array_equal(rows.output, np.concatenate([x[0], x[1, :3]]))


def test_int64_lengths_are_not_cut_to_32_bits(rng):
    weights, x = layers(rng), hidden_states(rng)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"sequence_length\[1\] is 4294967299"):
        encode(x, np.array([5, 2**32 + 3], np.int64), weights)


def test_no_lengths_and_no_mask_as_it_stands(rng):
    weights, x = layers(rng), hidden_states(rng)
    [out] = ops.bert_encoder(x, None, None, weights, head_num=HEADS, size_per_head=SIZE)
    expected = reference.encoder(x, weights, HEADS)[-1]
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_another_to_tensor_is_refused(rng):
    call, rows = calls(rng)["BertTransformer"]
    call(rows)
    weights, mask = layers(rng, 1), np.ones((2, 5, 5), np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="to_tensor is another tensor"):
        ops.bert_transformer(
            from_tensor=rows, to_tensor=rows + 1, attr_mask=mask,
            sequence_id_offset=ops.build_mask_remove_padding(hidden_states(rng), LENGTHS)[1],
            amax_list=np.zeros(0, np.float32), trt_seqlen_offset=np.array([0, 5, 8], np.int32),
            head_num=HEADS, size_per_head=SIZE, **weights[0],
        )  # fmt: skip


def test_reference_variables_that_are_assigned_in_place(rng):
    # TensorFlow 1's variables keep their buffer: what was prepared from it must not be found again.
    x, (layer,) = hidden_states(rng), layers(rng, 1)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {
            key: tf.compat.v1.Variable(value, use_resource=False) for key, value in layer.items()
        }
        read = {key: tf.identity(tf.identity(value)) for key, value in variables.items()}
        outputs = [encode(x, LENGTHS, [weights])[-1] for weights in (variables, read)]
        session.run(tf.compat.v1.global_variables_initializer())
        for factor in (1, 2, -1):
            changed = dict(layer, attr_v_kernel=layer["attr_v_kernel"] * np.float32(factor))
            session.run(variables["attr_v_kernel"].assign(changed["attr_v_kernel"]))
            expected = reference.encoder(x, [changed], HEADS, lengths=LENGTHS)[-1]
            for _ in range(2):
                for got in session.run(outputs):
                    np.testing.assert_allclose(got[1, :3], expected[1, :3], atol=1e-4)


def test_assigned_variables_and_changed_arrays(rng):
    x, weights = hidden_states(rng), layers(rng)
    variables = [{key: tf.Variable(value) for key, value in layer.items()} for layer in weights]
    run = tf.function(lambda: encode(x, LENGTHS, variables)[-1], autograph=False)
    for factor in (1, 2, -1):
        for layer, layer_variables in zip(weights, variables, strict=True):
            layer["inter_kernel"] *= np.float32(factor)  # in place, as a user's array may be
            layer_variables["inter_kernel"].assign(layer["inter_kernel"])
        expected = reference.encoder(x, weights, HEADS, lengths=LENGTHS)[-1]
        for got in (run(), run(), encode(x, LENGTHS, weights)[-1]):
            for b, length in enumerate(LENGTHS):
                np.testing.assert_allclose(got[b, :length], expected[b, :length], atol=1e-4)
    variables[0]["attr_q_bias"].assign_add(np.ones(HIDDEN, np.float32))
    weights[0]["attr_q_bias"] += 1
    np.testing.assert_array_equal(run(), encode(x, LENGTHS, weights)[-1])
