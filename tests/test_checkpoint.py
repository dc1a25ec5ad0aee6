"""Restoring google checkpoints as constants."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from fastertransformer_tf import checkpoint, checkpoint_io

_tf1 = tf.compat.v1


def save(folder: pathlib.Path, **tensors: np.ndarray) -> str:
    prefix = str(folder / "model.ckpt")
    checkpoint_io.save_checkpoint(prefix, {k.replace("__", "/"): v for k, v in tensors.items()})
    return prefix


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_casts_on_load(tmp_path: pathlib.Path, stored: str, wanted: str) -> None:
    values = np.array([1.5, -2.0, 0.25]).astype(tf.as_dtype(stored).as_numpy_dtype)
    path = save(tmp_path, a__b=values)
    with tf.Graph().as_default() as graph, _tf1.Session() as session:
        with checkpoint.restored_constants(path, wanted), _tf1.variable_scope("a"):
            constant = _tf1.get_variable("b", [3])
        assert constant.dtype.name == wanted
        np.testing.assert_array_equal(session.run(constant).astype(np.float32), [1.5, -2, 0.25])
        assert not graph.get_collection("variables")


def test_all_problems_are_listed_at_once(tmp_path: pathlib.Path) -> None:
    path = save(
        tmp_path,
        good=np.zeros(2, np.float32),
        shape=np.zeros(3, np.float32),
        large=np.array([1e6, 1], np.float32),
        packed=np.zeros(2, np.int8),
        half=np.float16([np.nan, np.inf]),
    )
    with pytest.raises(ValueError, match="does not fit the model, 5 variables") as caught:
        with tf.Graph().as_default(), checkpoint.restored_constants(path, "float16"):
            for name in ("good", "shape", "large", "packed", "half", "absent"):
                _tf1.get_variable(name, [2])
    text = str(caught.value)
    assert "shape has shape [3], expected [2]" in text
    assert "absent [2] is missing" in text
    assert "large has 1 values that overflow float16, the largest 1e+06" in text
    assert "packed is int8, expected floating point" in text
    assert "half has 2 values that are not finite: the checkpoint is quantized" in text
    assert "good" not in text


def test_unexpected_variables_without_training_state(tmp_path: pathlib.Path) -> None:
    path = save(
        tmp_path,
        w=np.zeros(1, np.float32),
        w__adam_m=np.zeros(1, np.float32),
        w__adam_v=np.zeros(1, np.float32),
        global_step=np.array(7, np.int64),
        cls__other=np.zeros(1, np.float32),
    )
    with tf.Graph().as_default(), checkpoint.restored_constants(path, "float32") as restored:
        _tf1.get_variable("w", [1])
    assert restored.unexpected() == ["cls/other"]
    assert checkpoint.Checkpoint(path).global_step() == 7


def test_reused_variable_is_one_constant(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, w=np.ones(1, np.float32))
    with tf.Graph().as_default(), checkpoint.restored_constants(path, "float32"):
        first = _tf1.get_variable("w", [1])
        with _tf1.variable_scope(_tf1.get_variable_scope(), reuse=True):
            assert _tf1.get_variable("w", [1]) is first


def test_too_large_for_a_graph(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, w=np.ones(100, np.float32))
    monkeypatch.setattr(checkpoint, "MAX_CONSTANT_BYTES", 399)
    with tf.Graph().as_default(), pytest.raises(ValueError, match="pass 399 bytes"):
        with checkpoint.restored_constants(path, "float32"):
            _tf1.get_variable("w", [100])


def test_missing_checkpoint(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.ckpt not found"):
        checkpoint.Checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="--init_checkpoint is not given"):
        checkpoint.choose_checkpoint(None, str(tmp_path))
    assert checkpoint.choose_checkpoint("x", str(tmp_path)) == "x"
