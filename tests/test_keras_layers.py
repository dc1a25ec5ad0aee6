"""The Keras layer against the float64 reference, and through what Keras does with layers."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
import tolerances

import fastertransformer_tf
from fastertransformer_tf import spec
from fastertransformer_tf.checkpoints.writing import save_checkpoint
from fastertransformer_tf.errors import UserError

LAYERS, HEADS, SIZE, INNER = 2, 2, 8, 48
HIDDEN = HEADS * SIZE
BATCH, SEQ = 3, 7
LENGTHS = np.array([7, 3, 5], np.int32)


def make_layer(**options):
    return fastertransformer_tf.BertEncoder(LAYERS, HEADS, INNER, **options)


def filled(layer, rng):
    """Gives a built layer random weights; returns them as float64 sees them."""
    weights = spec.random_layers(rng, LAYERS, HIDDEN, INNER)
    for index, values in enumerate(weights):
        for name, value in values.items():
            (variable,) = [v for v in layer.weights if v.name == f"layer_{index}_{name}"]
            variable.assign(value.astype(variable.dtype))
            values[name] = np.asarray(variable.numpy(), np.float64)
    return weights


@pytest.fixture
def hidden(rng):
    return rng.standard_normal((BATCH, SEQ, HIDDEN)).astype(np.float32)


def real(output, lengths=LENGTHS):
    return np.concatenate([np.asarray(o)[:n] for o, n in zip(output, lengths, strict=True)])


@pytest.mark.parametrize("how", ["nothing", "lengths", "mask", "bool mask", "matrix"])
def test_outputs(rng, hidden, how):
    layer = make_layer()
    layer.build([None, None, HIDDEN])
    weights = filled(layer, rng)
    keys = np.arange(SEQ) < LENGTHS[:, None]
    matrix = (rng.random((BATCH, SEQ, SEQ)) < 0.6) | np.eye(SEQ, dtype=bool)
    arguments = {
        "nothing": {},
        "lengths": {"sequence_length": LENGTHS},
        "mask": {"mask": keys.astype(np.int64)},
        "bool mask": {"mask": keys},
        "matrix": {"mask": matrix},
    }[how]
    expected = reference.encoder(
        hidden,
        weights,
        HEADS,
        lengths=None if how in ("nothing", "matrix") else LENGTHS,
        mask=matrix if how == "matrix" else None,
    )[-1]
    output = layer(hidden, **arguments)
    lengths = [SEQ] * BATCH if how in ("nothing", "matrix") else LENGTHS
    tolerances.assert_close(real(output, lengths), real(expected, lengths), "float32")
    in_function = tf.function(lambda x: layer(x, **arguments))(hidden)
    np.testing.assert_array_equal(in_function, output)


def test_a_mask_with_holes(rng, hidden):
    layer = make_layer()
    layer.build([None, None, HIDDEN])
    weights = filled(layer, rng)
    keys = np.array([[1, 0, 1, 1, 0, 1, 0]] * BATCH)
    mask = np.repeat(keys[:, None], SEQ, 1)
    expected = reference.encoder(hidden, weights, HEADS, mask=mask)[-1]
    output = layer(hidden, mask=keys)
    tolerances.assert_close(output[:, :6], expected[:, :6], "float32")


def test_all_layers_and_other_settings(rng, hidden):
    layer = make_layer(activation="relu", layernorm_epsilon=1e-3, return_all_layers=True)
    layer.build([None, None, HIDDEN])
    weights = filled(layer, rng)
    expected = reference.encoder(hidden, weights, HEADS, activation="relu", epsilon=1e-3)
    outputs = layer(hidden)
    assert len(outputs) == LAYERS
    for output, one in zip(outputs, expected, strict=True):
        tolerances.assert_close(output, one, "float32")


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("mixed_float16", "float16"), ("bfloat16", "bfloat16"), ("mixed_bfloat16", "bfloat16")],
)
def test_policies(rng, hidden, policy, dtype):
    layer = make_layer(dtype=policy)
    output = layer(hidden)  # Also builds it.
    assert {weight.dtype for weight in layer.weights} == {dtype}
    weights = filled(layer, rng)
    output = layer(hidden, sequence_length=LENGTHS)
    assert output.dtype.name == dtype
    rounded = np.asarray(tf.cast(hidden, dtype)).astype(np.float64)
    expected = reference.encoder(rounded, weights, HEADS, lengths=LENGTHS)[-1]
    tolerances.assert_close(real(output), real(expected), dtype)


def make_model(rng, **options):
    ids = keras.Input([None], dtype="int32")
    embedding = keras.layers.Embedding(11, HIDDEN, mask_zero=True)
    encoder = make_layer(name="encoder", **options)
    model = keras.Model(ids, keras.layers.Dense(3)(encoder(embedding(ids))[:, 0]))
    filled(encoder, rng)
    return model


IDS = np.array([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 0, 0]], np.int32)


def test_the_mask_of_the_layer_before_counts(rng):
    model = make_model(rng)
    alone = model(IDS[1:2, :2])
    np.testing.assert_allclose(model(IDS)[1:2], alone, atol=1e-5)


def test_config_round_trip():
    layer = make_layer(activation="gelu_erf", remove_padding=False, return_all_layers=True)
    again = fastertransformer_tf.BertEncoder.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_keras_file_round_trip(tmp_path: pathlib.Path, rng, policy) -> None:
    inputs = keras.Input([None, HIDDEN])
    lengths = keras.Input([], dtype="int32")
    layer = make_layer(dtype=policy)
    model = keras.Model([inputs, lengths], layer(inputs, sequence_length=lengths))
    filled(layer, rng)
    values = [rng.standard_normal((BATCH, SEQ, HIDDEN)).astype(np.float32), LENGTHS]
    expected = model(values)
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.models.load_model(path)
    np.testing.assert_array_equal(again(values), expected)
    np.testing.assert_array_equal(again.predict(values, verbose=0), expected)


LOAD = """
import sys
import numpy as np
import fastertransformer_tf
import tensorflow as tf
values = np.load(sys.argv[1] + "/values.npz")
loaded = tf.saved_model.load(sys.argv[1] + "/saved")
np.testing.assert_array_equal(loaded.serve(values["hidden"], values["lengths"]), values["expected"])
tf.saved_model.save(loaded, sys.argv[1] + "/again")
"""


def test_saved_model_round_trip(tmp_path: pathlib.Path, rng) -> None:
    inputs = keras.Input([None, HIDDEN])
    lengths = keras.Input([], dtype="int32")
    layer = make_layer()
    model = keras.Model([inputs, lengths], layer(inputs, sequence_length=lengths))
    filled(layer, rng)
    hidden = rng.standard_normal((BATCH, SEQ, HIDDEN)).astype(np.float32)
    expected = model([hidden, LENGTHS])
    np.savez(tmp_path / "values.npz", hidden=hidden, lengths=LENGTHS, expected=expected)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda x, n: model([x, n]),
        [tf.TensorSpec([None, None, HIDDEN]), tf.TensorSpec([None], tf.int32)],
    )
    archive.write_out(str(tmp_path / "saved"), verbose=False)
    # Another process, which has but the package's import.
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again/saved_model.pb").exists()


def test_a_head_over_it_trains(rng) -> None:
    model = make_model(rng)
    encoder = model.get_layer("encoder")
    model.get_layer(index=1).trainable = False  # Below it: no gradient reaches the embeddings.
    before = [weight.numpy() for weight in encoder.weights]
    head = model.layers[-1].kernel.numpy()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(np.repeat(IDS, 8, 0), np.tile([0, 1, 2], 8), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert np.any(model.layers[-1].kernel.numpy() != head)
    for weight, value in zip(encoder.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert not encoder.trainable_weights


def test_gradients_through_it_are_refused(hidden) -> None:
    layer = make_layer()
    with tf.GradientTape() as tape:
        x = tf.Variable(hidden)
        loss = tf.reduce_sum(layer(x))
    with pytest.raises(NotImplementedError, match="no gradient"):
        tape.gradient(loss, x)


def test_load_checkpoint(tmp_path: pathlib.Path, rng, hidden) -> None:
    weights = spec.random_layers(rng, LAYERS, HIDDEN, INNER)
    save_checkpoint(
        tmp_path / "model.ckpt",
        {
            f"bert/encoder/layer_{i}/{name}": value
            for i, layer in enumerate(spec.by_google_name(weights))
            for name, value in layer.items()
        },
    )
    layer = make_layer()
    with pytest.raises(UserError, match="no weights yet"):
        layer.load_checkpoint(tmp_path / "model.ckpt")
    layer.build([None, None, HIDDEN])
    layer.load_checkpoint(tmp_path / "model.ckpt")
    tolerances.assert_close(layer(hidden), reference.encoder(hidden, weights, HEADS)[-1], "float32")
    other = fastertransformer_tf.BertEncoder(LAYERS + 1, HEADS, INNER)
    other.build([None, None, HIDDEN])
    before = other.weights[0].numpy()
    with pytest.raises(UserError, match="layer_2/attention/self/query/kernel is missing"):
        other.load_checkpoint(tmp_path / "model.ckpt")
    np.testing.assert_array_equal(other.weights[0].numpy(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0, expected a whole number of at least 1"),
        ({"num_heads": 2.5}, "num_heads is 2.5"),
        ({"inner_size": True}, "inner_size is True"),
        ({"activation": "tanh"}, "activation is 'tanh', expected gelu_tanh, gelu_erf, relu"),
        ({"layernorm_epsilon": 0}, "layernorm_epsilon is 0, expected above 0"),
        ({"dtype": "float64"}, "the compute type is float64, expected float32"),
        ({"trainable": True}, "trainable is True, expected False"),
    ],
)
def test_wrong_options(options, message) -> None:
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "inner_size": INNER}
    with pytest.raises(ValueError, match=message):
        fastertransformer_tf.BertEncoder(**{**sizes, **options})


def test_wrong_calls(hidden) -> None:
    layer = make_layer()
    with pytest.raises(ValueError, match="mask and sequence_length are given"):
        layer(hidden, mask=np.ones((BATCH, SEQ)), sequence_length=LENGTHS)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \[B,S\] or \[B,S,S\]"):
        layer(hidden, mask=LENGTHS)
    with pytest.raises(ValueError, match=r"expected \[B,S,H\] with H a known multiple"):
        make_layer()(hidden[:, :, :15])
    with pytest.raises(tf.errors.InvalidArgumentError):
        layer(hidden, sequence_length=LENGTHS + 1)
