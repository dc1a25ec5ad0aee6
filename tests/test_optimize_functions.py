"""The rewriter on models of TensorFlow 2: Keras layers and tf.functions, and the command."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastertransformer_tf
from fastertransformer_tf.errors import UserError

VOCAB, HIDDEN, HEADS, INNER = 50, 32, 4, 48


def keras_bert(layers=2, *, masked_embedding=False, dropout=0.0):
    """BERT of Keras' own layers, as KerasHub's and newer tensorflow-models' are written."""
    ids = keras.Input([None], dtype="int32", name="ids")
    mask = keras.Input([None], dtype="int32", name="mask")
    x = keras.layers.Embedding(VOCAB, HIDDEN, mask_zero=masked_embedding)(ids)
    pairs = None if masked_embedding else keras.ops.expand_dims(mask, 1)
    for _ in range(layers):
        attention = keras.layers.MultiHeadAttention(HEADS, HIDDEN // HEADS, dropout=dropout)
        y = attention(x, x, attention_mask=pairs)
        y = keras.layers.Dropout(dropout)(y)
        x = keras.layers.LayerNormalization(epsilon=1e-6)(keras.layers.Add()([x, y]))
        y = keras.layers.Dense(INNER, activation="gelu")(x)
        y = keras.layers.EinsumDense("abc,cd->abd", [None, HIDDEN], bias_axes="d")(y)
        y = keras.layers.Dropout(dropout)(y)
        x = keras.layers.LayerNormalization(epsilon=1e-6)(keras.layers.Add()([x, y]))
    return keras.Model(ids if masked_embedding else [ids, mask], x)


def randomized(model, rng):
    model.set_weights(
        [w + rng.normal(0, 0.2, w.shape).astype(np.float32) for w in model.get_weights()]
    )
    return model


def export(model, folder):
    """Writes a SavedModel with two signatures."""
    specs = [keras.InputSpec(shape=(None, None), dtype="int32", name=n) for n in ("ids", "mask")]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "hidden", lambda ids, mask: {"hidden": model([ids, mask])}, input_signature=specs
    )
    archive.add_endpoint(
        "score",
        lambda ids, mask: {"score": tf.reduce_sum(model([ids, mask])[:, 0], -1)},
        input_signature=specs,
    )
    archive.write_out(str(folder), verbose=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    export(randomized(keras_bert(), np.random.default_rng(0)), folder / "model")
    return folder / "model"


def samples(rng, batch=3, length=9):
    mask = rng.integers(0, 2, [batch, length]).astype(np.int32)
    mask[:, 0] = 1
    return rng.integers(0, VOCAB, [batch, length]).astype(np.int32), mask


def outputs(folder, ids, mask):
    loaded = tf.saved_model.load(str(folder))
    result = {}
    for name in ("hidden", "score"):
        values = loaded.signatures[name](ids=tf.constant(ids), mask=tf.constant(mask))
        result |= {key: value.numpy() for key, value in values.items()}
        direct = getattr(loaded, name)(tf.constant(ids), tf.constant(mask))
        np.testing.assert_array_equal(direct[name], result[name])
    return result


@pytest.mark.parametrize(
    "changes",
    [{}, {"all_functions": True}, {"remove_padding": True}, {"floatx": "float16"}],
    ids=str,
)
def test_keras_layers_in_functions(served, tmp_path, rng, changes) -> None:
    report = fastertransformer_tf.optimize(served, tmp_path / "fast", **changes)
    assert not report.left
    assert {len(e.layers) for e in report.encoders} == {2}
    for encoder in report.encoders:
        assert encoder.padding_removed == changes.get("remove_padding", False)
        assert encoder.layernorm_epsilon == pytest.approx(1e-6)
    assert {t.signature for t in report.times} >= {"hidden", "score"}
    ids, mask = samples(rng)
    expected, actual = outputs(served, ids, mask), outputs(tmp_path / "fast", ids, mask)
    assert expected.keys() == actual.keys() == {"hidden", "score"}
    bound = 3e-2 if "floatx" in changes else 1e-4
    real = mask == 1 if changes.get("remove_padding") else np.ones_like(mask, bool)
    np.testing.assert_allclose(actual["hidden"][real], expected["hidden"][real], atol=bound, rtol=0)
    np.testing.assert_allclose(actual["score"], expected["score"], atol=20 * bound, rtol=0)


def test_the_result_can_be_saved_again(served, tmp_path, rng) -> None:
    fastertransformer_tf.optimize(served, tmp_path / "fast")
    loaded = tf.saved_model.load(str(tmp_path / "fast"))
    tf.saved_model.save(loaded, str(tmp_path / "again"), signatures=dict(loaded.signatures))
    ids, mask = samples(rng)
    first, second = (outputs(tmp_path / name, ids, mask) for name in ("fast", "again"))
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value)


def test_a_keras_model_with_one_input(tmp_path, rng) -> None:
    model = randomized(keras_bert(masked_embedding=True), rng)
    model.export(str(tmp_path / "model"), verbose=False)
    report = fastertransformer_tf.optimize(tmp_path / "model", tmp_path / "fast")
    assert sum(len(e.layers) for e in report.encoders) >= 2, report.lines()
    ids, mask = samples(rng)
    ids = np.maximum(ids, 1) * mask
    loaded = [tf.saved_model.load(str(tmp_path / name)) for name in ("model", "fast")]
    before, after = (model.serve(tf.constant(ids)) for model in loaded)
    np.testing.assert_allclose(after, before, atol=1e-4, rtol=0)


def test_keras_attention_with_dropout_where_every_sequence_has_a_token(tmp_path, rng) -> None:
    export(randomized(keras_bert(dropout=0.1), rng), tmp_path / "model")
    with pytest.raises(UserError, match="get probabilities of 0"):
        fastertransformer_tf.optimize(tmp_path / "model", tmp_path / "fast")
    report = fastertransformer_tf.optimize(
        tmp_path / "model", tmp_path / "fast", assume_real_tokens=True
    )
    assert {len(e.layers) for e in report.encoders} == {2}
    ids, mask = samples(rng)
    expected, actual = outputs(tmp_path / "model", ids, mask), outputs(tmp_path / "fast", ids, mask)
    np.testing.assert_allclose(actual["hidden"], expected["hidden"], atol=1e-4, rtol=0)


# ---- The command ---------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fastertransformer_tf.ft_optimize", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(served, tmp_path) -> None:
    done = command(f"--source={served}", f"--destination={tmp_path / 'fast'}", "--remove_padding")
    assert done.returncode == 0, done.stderr
    assert "layer_1" in done.stdout and "padding removed" in done.stdout
    assert "times as fast" in done.stdout
    report = json.loads((tmp_path / "fast.optimize.json").read_text())
    assert {len(e["layers"]) for e in report["encoders"]} == {2}


def test_the_command_answers_mistakes_in_one_sentence(served, tmp_path) -> None:
    for arguments, message in (
        ([], "required flags are missing: --source, --destination"),
        ([f"--source={tmp_path}/no", f"--destination={tmp_path}/fast"], "not found, expected a"),
        (
            [f"--source={served}", f"--destination={tmp_path}/fast", "--ranges=x"],
            "--ranges is of INT8, but --int8_mode=0",
        ),
    ):
        done = command(*arguments)
        assert done.returncode == 1 and message in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
