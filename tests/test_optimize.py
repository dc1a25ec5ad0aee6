"""The rewriter on bert-tensorflow's own graphs, SavedModels, frozen graphs and checkpoints."""

from __future__ import annotations

import json
import pathlib

import google_graphs as google
import numpy as np
import pytest
import tensorflow as tf
import tiny_bert

import fastertransformer_tf
from fastertransformer_tf.checkpoints import writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import conversion, fold_shift, points

tf1 = tf.compat.v1


def ops_of(path: pathlib.Path) -> list[str]:
    """The ops of the outer graph of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    return [node.op for node in saved.meta_graphs[0].graph_def.node]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A SavedModel of google's classifier with resource variables."""
    folder = tmp_path_factory.mktemp("classifier") / "model"
    with tf.Graph().as_default(), tf1.Session() as session:
        tensors = google.inputs()
        model = google.bert(tensors)
        outputs = {
            "logits": google.classifier(model),
            "hidden": model.get_sequence_output(),
        }
        google.randomize(session)
        google.save(session, folder, tensors, outputs)
        google.freeze(session, folder.parent / "frozen.pb", outputs.values())
        prefix = tf1.train.Saver().save(session, str(folder.parent / "model.ckpt"))
    return folder, outputs["hidden"].name, prefix


def test_a_classifier_keeps_its_answers_files_and_names(classifier, tmp_path, rng) -> None:
    source, _, _ = classifier
    result = tmp_path / "fast"
    report = fastertransformer_tf.optimize(source, result)
    assert [len(e.layers) for e in report.encoders] == [3] and not report.left
    assert report.encoders[0].mask.startswith("of tokens")
    ops = ops_of(result)
    assert ops.count("BertEncoder") == 1 and "Softmax" not in ops and "Erf" not in ops
    for prefix in (False, True):
        given = google.samples(rng, prefix=prefix)
        expected, actual = google.run_saved(source, given), google.run_saved(result, given)
        assert expected.keys() == actual.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(actual[key], value, atol=1e-4, rtol=0)
    files = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
    assert {p.relative_to(result) for p in result.rglob("*") if p.is_file()} == files
    for file in files - {pathlib.Path("saved_model.pb")}:
        assert (result / file).read_bytes() == (source / file).read_bytes()
    written = json.loads((tmp_path / "fast.optimize.json").read_text())
    assert written["outputs"] and written["times"][0]["before_ms"]
    assert (tmp_path / "fast.optimize.png").stat().st_size > 1000


def test_the_result_loads_in_tensorflow_2(classifier, tmp_path, rng) -> None:
    source, _, _ = classifier
    fastertransformer_tf.optimize(source, tmp_path / "fast", write_report=False)
    assert not (tmp_path / "fast.optimize.json").exists()
    given = google.samples(rng)
    run = tf.saved_model.load(str(tmp_path / "fast")).signatures["serving_default"]
    actual = run(**{k: tf.constant(v) for k, v in given.items()})
    expected = google.run_saved(source, given)
    np.testing.assert_allclose(actual["logits"], expected["logits"], atol=1e-4, rtol=0)


def test_padding_is_removed(classifier, tmp_path, rng) -> None:
    source, _, _ = classifier
    report = fastertransformer_tf.optimize(source, tmp_path / "fast", remove_padding=True)
    assert report.encoders[0].padding_removed
    assert {o.rows for o in report.outputs if o.name == "hidden"} == {"real tokens"}
    given = google.samples(rng)
    expected, actual = (google.run_saved(p, given) for p in (source, tmp_path / "fast"))
    np.testing.assert_allclose(actual["logits"], expected["logits"], atol=1e-4, rtol=0)
    real = given["input_mask"] == 1
    np.testing.assert_allclose(actual["hidden"][real], expected["hidden"][real], atol=1e-4, rtol=0)
    last = np.max(real * np.arange(real.shape[1]), axis=1)
    behind = np.arange(real.shape[1]) > last[:, np.newaxis]
    assert (actual["hidden"][behind] == 0).all()


def test_sequences_without_a_real_token_attend_as_in_the_source(classifier, tmp_path, rng) -> None:
    source, _, _ = classifier
    fastertransformer_tf.optimize(source, tmp_path / "fast")
    given = google.samples(rng)
    given["input_mask"][1] = 0
    expected, actual = (google.run_saved(p, given) for p in (source, tmp_path / "fast"))
    # Scores of about 1 lie beside -10000 there, where float32 has steps of 0.001.
    np.testing.assert_allclose(actual["hidden"], expected["hidden"], atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"floatx": "float16"}, 3e-2),
        ({"floatx": "bfloat16"}, 2.5e-1),
        ({"int8_mode": 1}, 0.5),
        ({"int8_mode": 2, "remove_padding": True, "floatx": "bfloat16"}, 0.6),
    ],
)
def test_other_types_make_constants(classifier, tmp_path, rng, changes, tolerance) -> None:
    source, _, _ = classifier
    report = fastertransformer_tf.optimize(source, tmp_path / "fast", **changes)
    assert all(o.is_right for o in report.outputs) and report.outputs
    given = google.samples(rng)
    expected, actual = (google.run_saved(p, given) for p in (source, tmp_path / "fast"))
    difference = np.abs(actual["logits"] - expected["logits"]).max()
    assert 0 < difference <= tolerance * max(1, np.abs(expected["logits"]).max())


def calibrated(tiny, rng, folder, is_folded):
    """Writes calibrated.ckpt and int8.ckpt of a tiny model, as --do_calib does, with one range."""
    tensors = dict(tiny.weights)
    if is_folded:
        hidden = tiny_bert.CONFIG["hidden_size"]
        centres = {name: rng.normal(0, 1, hidden) for name in fold_shift.shift_points(3)}
        tensors = fold_shift.fold_shift(tensors, centres)
    for name in points.all_names(3):
        kernel = tensors.get(name.removesuffix("_quantizer"))
        largest = np.float32(6) if kernel is None else np.abs(kernel).max(axis=0)
        tensors |= {f"{name}/quant_max": largest, f"{name}/quant_min": -largest}
    writing.save_checkpoint(folder / "calibrated.ckpt", tensors)
    conversion.quantize_checkpoint(folder / "calibrated.ckpt", folder / "int8.ckpt", 2)


@pytest.mark.parametrize("is_folded", [False, True])
def test_ranges_of_a_calibrated_and_of_a_quantized_checkpoint(tmp_path, rng, is_folded) -> None:
    tiny = tiny_bert.make_tiny_bert(tmp_path / "tiny")
    google.export_classifier(tiny.checkpoint, tiny.config_file, tmp_path / "model")
    calibrated(tiny, rng, tmp_path, is_folded)
    given = google.samples(rng)
    logits = []
    for name in ("calibrated", "int8"):
        fastertransformer_tf.optimize(
            tmp_path / "model", tmp_path / name, int8_mode=2, ranges=str(tmp_path / f"{name}.ckpt")
        )
        logits.append(google.run_saved(tmp_path / name, given)["logits"])
    np.testing.assert_array_equal(*logits)
    with pytest.raises(UserError, match="does not fit the encoder"):
        other = tiny_bert.make_tiny_bert(tmp_path / "other", intermediate_size=40)
        fastertransformer_tf.optimize(
            tmp_path / "model", tmp_path / "no", int8_mode=2, ranges=other.checkpoint
        )


def test_hidden_states_of_a_calibration_that_moved_them(tmp_path, rng) -> None:
    tiny = tiny_bert.make_tiny_bert(tmp_path / "tiny")
    with tf.Graph().as_default(), tf1.Session() as session:
        tensors = google.inputs()
        layers = google.bert(tensors).get_all_encoder_layers()
        tf1.train.Saver().restore(session, str(tiny.checkpoint))
        outputs = {f"layer_{i}": layer for i, layer in enumerate(layers)}
        google.save(session, tmp_path / "model", tensors, outputs)
    calibrated(tiny, rng, tmp_path, is_folded=True)
    fastertransformer_tf.optimize(
        tmp_path / "model", tmp_path / "fast", int8_mode=1, ranges=str(tmp_path / "int8.ckpt")
    )
    given = google.samples(rng)
    expected, actual = (google.run_saved(p, given) for p in (tmp_path / "model", tmp_path / "fast"))
    for key, value in expected.items():
        assert np.sqrt(np.mean((actual[key] - value) ** 2)) < 0.1 * value.std()


def test_a_meta_graph_is_run_without_its_saver(classifier, tmp_path, monkeypatch) -> None:
    """What is fetched from a graph without signatures must not write a checkpoint."""
    _, _, prefix = classifier
    monkeypatch.chdir(tmp_path)
    report = fastertransformer_tf.optimize(prefix, "fast", write_report=False)
    assert "logits" in {output.name for output in report.outputs}
    assert [path.name for path in tmp_path.iterdir()] == ["fast"]


def test_a_frozen_graph(classifier, tmp_path, rng) -> None:
    source, hidden, _ = classifier
    frozen = source.parent / "frozen.pb"
    report = fastertransformer_tf.optimize(frozen, tmp_path / "fast.pb")
    assert [len(e.layers) for e in report.encoders] == [3]
    names = ["logits:0", hidden]
    given = google.samples(rng)
    expected = google.run_frozen(frozen, given, names)
    actual = google.run_frozen(tmp_path / "fast.pb", given, names)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4, rtol=0)
    half = fastertransformer_tf.optimize(
        frozen, tmp_path / "half.pb", floatx="float16", outputs=["logits"]
    )
    assert half.outputs[0].difference <= 3e-2
    # The float32 matrices are gone.
    assert (tmp_path / "half.pb").stat().st_size < 0.85 * frozen.stat().st_size


def test_a_checkpoint_with_its_meta_graph(classifier, tmp_path, rng) -> None:
    source, _, prefix = classifier
    report = fastertransformer_tf.optimize(prefix, tmp_path / "fast", outputs=["logits"])
    assert [len(e.layers) for e in report.encoders] == [3]
    given = google.samples(rng)
    with tf.Graph().as_default(), tf1.Session() as session:
        saver = tf1.train.import_meta_graph(str(tmp_path / "fast" / "model.ckpt.meta"))
        saver.restore(session, str(tmp_path / "fast" / "model.ckpt"))
        actual = session.run("logits:0", {f"{k}:0": v for k, v in given.items()})
    expected = google.run_saved(source, given)["logits"]
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


def test_squad_in_another_scope_with_fixed_sizes_and_reference_variables(tmp_path, rng) -> None:
    source = tmp_path / "model"
    with tf.Graph().as_default(), tf1.Session() as session:
        tensors = google.inputs(batch=3, length=16)
        with tf1.variable_scope("", use_resource=False):
            start, end = google.squad(google.bert(tensors, scope="my/own"))
        assert any(op.type == "VariableV2" for op in session.graph.get_operations())
        google.randomize(session)
        google.save(session, source, tensors, {"start": start, "end": end})
    report = fastertransformer_tf.optimize(source, tmp_path / "fast")
    assert [layer.softmax for layer in report.encoders[0].layers] == [
        f"my/own/encoder/layer_{i}/attention/self/Softmax" for i in range(3)
    ]
    for changes in ({}, {"remove_padding": True}):
        result = tmp_path / f"fast{len(changes)}"
        fastertransformer_tf.optimize(source, result, **changes)
        given = google.samples(rng, batch=3, length=16)
        expected, actual = google.run_saved(source, given), google.run_saved(result, given)
        real = given["input_mask"] == 1 if changes else np.ones([3, 16], bool)
        for key, value in expected.items():
            np.testing.assert_allclose(actual[key][real], value[real], atol=1e-4, rtol=0)


def test_two_encoders_in_one_graph(tmp_path, rng) -> None:
    source = tmp_path / "model"
    with tf.Graph().as_default(), tf1.Session() as session:
        first, second = google.inputs(), google.inputs(prefix="other_")
        a = google.bert(first, scope="bert")
        b = google.bert(second, scope="encoder_of_answers", num_hidden_layers=2, hidden_act="relu")
        score = tf.reduce_sum(a.get_pooled_output() * b.get_pooled_output(), -1, name="score")
        google.randomize(session)
        tensors = first | {f"other_{k}": v for k, v in second.items()}
        google.save(session, source, tensors, {"score": score})
    report = fastertransformer_tf.optimize(source, tmp_path / "fast", remove_padding=True)
    assert sorted((len(e.layers), e.activation) for e in report.encoders) == [
        (2, "relu"),
        (3, "gelu_tanh"),
    ]
    given = google.samples(rng)
    given |= {f"other_{k}": v for k, v in google.samples(rng, length=11).items()}
    expected, actual = (google.run_saved(p, given)["score"] for p in (source, tmp_path / "fast"))
    np.testing.assert_allclose(actual, expected, atol=1e-3, rtol=1e-5)


def test_hidden_states_and_probabilities_that_are_fetched(tmp_path, rng) -> None:
    source = tmp_path / "model"
    with tf.Graph().as_default(), tf1.Session() as session:
        tensors = google.inputs()
        model = google.bert(tensors)
        layers = model.get_all_encoder_layers()
        probabilities = session.graph.get_tensor_by_name(
            "bert/encoder/layer_2/attention/self/Softmax:0"
        )
        google.randomize(session)
        outputs = {"last": layers[-1], "first": layers[0], "probabilities": probabilities}
        google.save(session, source, tensors, outputs)
    report = fastertransformer_tf.optimize(source, tmp_path / "fast")
    assert report.encoders[0].inner_outputs == ["layer_0", "layer_1"]
    given = google.samples(rng)
    expected, actual = (google.run_saved(p, given) for p in (source, tmp_path / "fast"))
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, atol=1e-4, rtol=0)
    assert ops_of(tmp_path / "fast").count("Softmax") == 1


def test_a_model_in_training_is_left_alone(tmp_path) -> None:
    with tf.Graph().as_default(), tf1.Session() as session:
        model = google.bert(google.inputs(), is_training=True, num_hidden_layers=1)
        logits = google.classifier(model)
        google.randomize(session)
        google.freeze(session, tmp_path / "training.pb", [logits])
    with pytest.raises(UserError, match=r"layer_0 .*dropout is on.*random_uniform"):
        fastertransformer_tf.optimize(tmp_path / "training.pb", tmp_path / "fast.pb")
    assert not (tmp_path / "fast.pb").exists()


def test_a_result_that_is_off_is_not_written(classifier, tmp_path, monkeypatch) -> None:
    from fastertransformer_tf.rewriting import verification

    monkeypatch.setitem(verification.TOLERANCES, "float16", 1e-9)
    with pytest.raises(UserError, match=r"output \w+ of serving_default is off by .*at most 1e-09"):
        fastertransformer_tf.optimize(classifier[0], tmp_path / "fast", floatx="float16")
    assert list(tmp_path.iterdir()) == []


def test_given_samples_are_used_and_checked(classifier, tmp_path, rng) -> None:
    source, _, _ = classifier
    given = google.samples(rng, batch=2, length=7)
    np.savez(tmp_path / "samples.npz", **given)
    report = fastertransformer_tf.optimize(
        source, tmp_path / "fast", sample_inputs=tmp_path / "samples.npz"
    )
    assert report.times[0].shapes["input_ids"] == [2, 7]
    del given["input_mask"]
    with pytest.raises(UserError, match=r"samples have .*expected the inputs of signature"):
        fastertransformer_tf.optimize(source, tmp_path / "other", sample_inputs=given)
    with pytest.raises(UserError, match=r"is no \.npz file"):
        fastertransformer_tf.optimize(source, tmp_path / "other", sample_inputs=__file__)


def test_a_graph_of_more_than_2_gib_is_refused(classifier, tmp_path, monkeypatch) -> None:
    from fastertransformer_tf.rewriting import sources

    monkeypatch.setattr(sources, "_MOST_BYTES", 10_000)
    with pytest.raises(UserError, match="expected less than 2 GiB"):
        fastertransformer_tf.optimize(classifier[0], tmp_path / "fast", floatx="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floatx": "float64"}, "floatx is 'float64'"),
        ({"int8_mode": 4}, "int8_mode is 4, expected 0, 1, 2 or 3"),
        ({"ranges": "x"}, "ranges are of INT8, but int8_mode is 0"),
        ({"signature": "other"}, r"signature is 'other', expected one of \['serving_default'\]"),
        ({"outputs": ["nothing"]}, "outputs has nothing, expected a node"),
        ({"all_functions": True, "remove_padding": True}, "all_functions is of float32"),
    ],
)
def test_wrong_arguments(classifier, tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        fastertransformer_tf.optimize(classifier[0], tmp_path / "fast", **changes)
    assert list(tmp_path.iterdir()) == []


def test_wrong_sources_and_destinations(classifier, tmp_path) -> None:
    optimize = fastertransformer_tf.optimize
    with pytest.raises(FileNotFoundError, match="expected a SavedModel's folder"):
        optimize(tmp_path / "nothing", tmp_path / "fast")
    with pytest.raises(UserError, match=r"has no saved_model\.pb"):
        optimize(tmp_path, tmp_path / "fast")
    (tmp_path / "text.pb").write_text("no graph")
    with pytest.raises(UserError, match="GraphDef"):
        optimize(tmp_path / "text.pb", tmp_path / "fast")
    with pytest.raises(UserError, match="exists already, expected a new path"):
        optimize(classifier[0], tmp_path)
    with tf.Graph().as_default():
        tf.identity(tf1.placeholder(tf.float32, [2], "x"), "y")
        (tmp_path / "empty.pb").write_bytes(
            tf1.get_default_graph().as_graph_def().SerializeToString()
        )
    with pytest.raises(UserError, match="it has no attention at all"):
        optimize(tmp_path / "empty.pb", tmp_path / "fast")
