"""Restoring google checkpoints as variables."""

from __future__ import annotations

import os
import pathlib
import re
import weakref

import numpy as np
import pytest
import tensorflow as tf

from fastertransformer_tf.checkpoints import reading, restoring, writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.graphs import variables

_tf1 = tf.compat.v1


def save(folder: pathlib.Path, **tensors: np.ndarray) -> str:
    prefix = str(folder / "model.ckpt")
    writing.save_checkpoint(prefix, {k.replace("__", "/"): v for k, v in tensors.items()})
    return prefix


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_casts_on_load(tmp_path: pathlib.Path, stored: str, wanted: str) -> None:
    values = np.array([1.5, -2.0, 0.25]).astype(tf.as_dtype(stored).as_numpy_dtype)
    path = save(tmp_path, a__b=values)
    with tf.Graph().as_default() as graph, _tf1.Session() as session:
        with (
            restoring.restored_variables(path, wanted) as restored,
            _tf1.variable_scope("a"),
        ):
            variable = _tf1.get_variable("b", [3])
        restored.load(session)
        assert variable.dtype.name == wanted
        np.testing.assert_array_equal(session.run(variable).astype(np.float32), [1.5, -2, 0.25])
        assert graph.get_collection("variables") == [variable]
        assert not graph.get_collection("trainable_variables")


def test_variables_are_resources_whatever_the_graph_makes(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, w=np.ones(2, np.float32))
    made = []
    for restore in (True, False):
        scope = _tf1.variable_scope(_tf1.get_variable_scope(), use_resource=False)
        with tf.Graph().as_default(), scope:
            if restore:
                with restoring.restored_variables(path, "float32"):
                    made.append(_tf1.get_variable("w", [2]))
            else:
                made.append(variables.get_variable("w", [2]))
            reference = _tf1.get_variable("other", [2])
        assert reference.dtype._is_ref_dtype  # As TensorFlow 1's programs have it.
    assert not any(variable.dtype._is_ref_dtype for variable in made)


def test_values_are_let_go_as_they_are_loaded(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, **{f"v{i}": np.full(1000, i, np.float32) for i in range(4)})
    with tf.Graph().as_default():
        with restoring.restored_variables(path, "float16") as restored:
            for i in range(4):
                _tf1.get_variable(f"v{i}", [1000])
    held = [weakref.ref(value) for _, value in restored._values._values]
    seen = []

    class Session:
        """Keeps no value, where TensorFlow's holds those it is fed for a while after a call."""

        def run(self, initializer: tf.Operation, feeds: dict[tf.Tensor, np.ndarray]) -> None:
            seen.append(sum(value() is not None for value in held))

    restored.load(Session())
    assert seen == [4, 3, 2, 1] and restored._values._values == []


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
        with tf.Graph().as_default(), restoring.restored_variables(path, "float16"):
            for name in ("good", "shape", "large", "packed", "half", "absent"):
                _tf1.get_variable(name, [2])
    text = str(caught.value)
    assert "shape has shape [3], expected [2]" in text
    assert "absent [2] is missing" in text
    assert "large has 1 values that overflow float16, the largest 1e+06" in text
    assert "packed is int8, expected floating point" in text
    assert "half has 2 values that are not finite: the checkpoint is quantized" in text
    assert "good has" not in text and "good is" not in text and "good [" not in text


def test_unexpected_variables_without_training_state(tmp_path: pathlib.Path) -> None:
    path = save(
        tmp_path,
        w=np.zeros(1, np.float32),
        w__adam_m=np.zeros(1, np.float32),
        w__adam_v=np.zeros(1, np.float32),
        global_step=np.array(7, np.int64),
        cls__other=np.zeros(1, np.float32),
    )
    with tf.Graph().as_default(), restoring.restored_variables(path, "float32") as restored:
        _tf1.get_variable("w", [1])
    assert restored.unexpected() == ["cls/other"]
    assert reading.Checkpoint(path).global_step() == 7


def test_a_reused_variable_is_one(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, w=np.ones(1, np.float32))
    with tf.Graph().as_default(), restoring.restored_variables(path, "float32"):
        first = _tf1.get_variable("w", [1])
        with _tf1.variable_scope(_tf1.get_variable_scope(), reuse=True):
            assert _tf1.get_variable("w", [1]) is first


def test_missing_checkpoint(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.ckpt not found"):
        reading.Checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="--init_checkpoint is not given"):
        reading.choose_checkpoint(None, str(tmp_path))
    assert reading.choose_checkpoint("x", str(tmp_path)) == "x"


def test_other_things_than_a_checkpoint_are_named(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, w=np.ones(3, np.float32))
    os.mkdir(tmp_path / "empty")
    half = tmp_path / "half"
    half.mkdir()
    (half / "model.ckpt.index").write_bytes((tmp_path / "model.ckpt.index").read_bytes())
    for given, message in {
        f"{path}.index": f"is one file of a checkpoint, expected what .* begin with: {path}",
        f"{path}.data-00000-of-00001": "is one file of a checkpoint",
        f"{path}.meta": "is one file of a checkpoint",
        str(tmp_path / "empty"): "the folder .* has no checkpoint, expected one with its .index",
        "gs://bucket/model.ckpt": "--init_checkpoint=gs://bucket/model.ckpt is a URL, expected",
        str(half / "model.ckpt"): "there are no .data files, expected some",
        str(tmp_path / "nothing"): "not found, expected .*nothing.index and its .data files",
    }.items():
        with pytest.raises((UserError, FileNotFoundError), match=message):
            reading.Checkpoint(given)


def test_a_folder_means_its_latest_checkpoint(tmp_path: pathlib.Path) -> None:
    for step in (1, 2):
        prefix = str(tmp_path / f"model.ckpt-{step}")
        writing.save_checkpoint(prefix, {"w": np.full(1, step, np.float32)})
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/moved/model.ckpt-2"\n')
    assert reading.Checkpoint(tmp_path).load("w") == 2
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-3"\n')
    with pytest.raises(UserError, match="its file `checkpoint` names 'model.ckpt-3', which is not"):
        reading.Checkpoint(tmp_path)


def test_a_folder_means_its_only_checkpoint(tmp_path: pathlib.Path) -> None:
    """google's folders hold no file `checkpoint`."""
    for number, name in enumerate(("bert_model.ckpt", "model.ckpt-7")):
        writing.save_checkpoint(tmp_path / name / name, {"w": np.full(1, number, np.float32)})
        assert reading.Checkpoint(tmp_path / name).load("w") == number
    writing.save_checkpoint(tmp_path / "model.ckpt-7" / "a", {"w": np.zeros(1, np.float32)})
    with pytest.raises(
        UserError, match="has 2 checkpoints and no .*: a; model.ckpt-7: give one .*7/a$"
    ):
        reading.Checkpoint(tmp_path / "model.ckpt-7")


def test_an_object_based_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    path = tf.train.Checkpoint(v=tf.Variable(1.0)).save(str(tmp_path / "object"))
    with pytest.raises(UserError, match="is object-based .*, expected a name-based one"):
        reading.Checkpoint(path)


@pytest.mark.parametrize("file", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_damage_is_told(tmp_path: pathlib.Path, file: str) -> None:
    path = save(tmp_path, w=np.arange(1000, dtype=np.float32))
    whole = (tmp_path / file).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged or incomplete"):
            reading.Checkpoint(path).load("w")


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["bert/a", "cls/squad/output_weights", "cls/squad/output_bias"], "its head is of another"),
        (["bert/a"], "it has no head: fine-tune it with --do_train first"),
        (["model/bert/a", "model/output_weights"], "has model/bert/a: the model is in another var"),
        (["encoder/x"], "it has no bert/..., but such as encoder/x"),
    ],
)
def test_a_hint_why_it_does_not_fit(tmp_path: pathlib.Path, names: list[str], hint: str) -> None:
    path = save(tmp_path, **{name: np.zeros(1, np.float32) for name in names})
    with pytest.raises(UserError, match=re.escape(hint)):
        with tf.Graph().as_default(), restoring.restored_variables(path, "float32"):
            for name in ("bert/a", "output_weights", "output_bias"):
                _tf1.get_variable(name, [1])


def test_a_long_list_of_problems_is_cut(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, w=np.zeros(1, np.float32))
    with pytest.raises(UserError, match="fit the model, 200 variables: .*; and 190 more") as caught:
        with tf.Graph().as_default(), restoring.restored_variables(path, "float32"):
            for i in range(200):
                _tf1.get_variable(f"bert/v{i}", [2**40])  # Nothing of that size is made.
    assert len(str(caught.value)) < 700


def test_content_hash(tmp_path: pathlib.Path) -> None:
    tensors = {"a": np.ones(2, np.float32), "b": np.array([b"x", b"y"], object)}
    writing.save_checkpoint(tmp_path / "1", tensors)
    writing.save_checkpoint(tmp_path / "2", dict(reversed(tensors.items())))
    writing.save_checkpoint(tmp_path / "3", tensors | {"a": np.float32([1, 1.5])})
    writing.save_checkpoint(tmp_path / "4", tensors | {"a": np.ones((2, 1), np.float32)})
    one, two, three, four = (reading.Checkpoint(tmp_path / f"{i}").content_hash() for i in "1234")
    assert one == two and len({one, three, four}) == 3
