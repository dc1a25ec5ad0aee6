"""Training as int8 computes, and from a teacher: losses, both runners, kills, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from tiny_bert import make_tiny_bert, make_tiny_squad
from tolerances import assert_close

from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import bert_compat, heads, modeling, point_encoder
from fastertransformer_tf.programs import calibration, classification, question_answering
from fastertransformer_tf.quantization import conversion, points
from fastertransformer_tf.training import batches, losses, tasks, teacher
from fastertransformer_tf.training.options import TrainingOptions

_tf1 = tf.compat.v1


def _run(program, **arguments):
    values = flags.FlagValues()
    program.define_flags(values)
    values(["program", *(f"--{k}={v}" for k, v in arguments.items())])
    return program.run(values)


def _read(prefix):
    source = reading.Checkpoint(prefix)
    return {name: np.asarray(source.load(name)) for name in source.shapes}


# ---- The loss of a student -----------------------------------------------------------------------


def _divergence(student, teacher, mask):
    """The definition, in float64, row by row over real entries."""
    found = []
    for s, t, real in zip(student.astype(float), teacher.astype(float), mask != 0, strict=True):
        p, q = (np.exp(x[real] / 3) / np.exp(x[real] / 3).sum() for x in (s, t))
        found.append((p * np.log(p / q)).sum())
    return np.mean(found)


@pytest.mark.parametrize("over_tokens", [False, True])
def test_the_divergence_is_that_of_the_definition(rng, over_tokens):
    student, teacher_ = rng.normal(0, 3, (2, 4, 7)).astype(np.float32)
    lengths = np.array([7, 3, 1, 5]) if over_tokens else np.full(4, 7)
    mask = (np.arange(7) < lengths[:, None]).astype(np.int32)
    with tf.Graph().as_default(), _tf1.Session() as session:
        both = [tf.constant(student), tf.constant(teacher_)]
        loss = losses.divergence(*both, tf.constant(mask) if over_tokens else None)
        gradients = tf.gradients(loss, both)
        value, slope = session.run([loss, gradients[0]])
        same = session.run(losses.divergence(both[0], both[0]))
    assert gradients[1] is None
    assert value == pytest.approx(_divergence(student, teacher_, mask), rel=1e-5)
    assert value > 0.01 and abs(same) < 1e-6
    assert np.isfinite(slope).all() and not slope[mask == 0].any()
    for row, column in ((0, 2), (1, 1), (3, 4)):
        moved = student.astype(float)
        moved[row, column] += 1e-5
        rise = _divergence(moved, teacher_, mask) - _divergence(student, teacher_, mask)
        assert slope[row, column] == pytest.approx(rise / 1e-5, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["hidden_states", "attention"])
def test_errors_of_layers_are_those_of_the_definition(rng, kind):
    shape = (3, 5, 8) if kind == "hidden_states" else (3, 2, 5, 5)
    real = np.arange(5) < np.array([5, 2, 1])[:, None]
    counted = (
        real[:, :, None]
        if kind == "hidden_states"
        else real[:, None, :, None] & real[:, None, None]
    )
    counted = np.broadcast_to(counted, shape)
    student, teacher_ = rng.normal(size=(2, *shape)).astype(np.float32)
    expected = np.square(student.astype(float) - teacher_)[counted].mean()
    student[~counted] = np.inf  # Whatever padding holds.
    error = {"hidden_states": losses.hidden_states_error, "attention": losses.attention_error}[kind]
    with tf.Graph().as_default(), _tf1.Session() as session:
        both = [tf.constant(student), tf.constant(teacher_)]
        loss = error(*both, tf.constant(real.astype(np.int32)))
        slopes = tf.gradients(loss, both)
        value, slope = session.run([loss, slopes[0]])
    assert slopes[1] is None
    assert value == pytest.approx(expected, rel=1e-5)
    exact = np.where(counted, 2 * (student.astype(float) - teacher_) / counted.sum(), 0)
    np.testing.assert_allclose(slope, exact, rtol=1e-4, atol=1e-7)


# ---- The encoder that is trained -----------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"), hidden_dropout_prob=0.2)


def _inputs(rng):
    mask = (np.arange(9) < np.array([9, 4, 6])[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(0, 64, (3, 9)).astype(np.int32),
        "input_mask": mask,
        "segment_ids": np.zeros((3, 9), np.int32),
        "label_ids": np.int32([0, 1, 1]),
        "start_positions": np.int32([0, 1, 2]),
        "end_positions": np.int32([1, 3, 2]),
    }


def _loss_and_gradients(tiny, given, build, taps):
    """Loss with dropout at one step, and its gradients by variable, from the tiny weights."""
    from fastertransformer_tf.models import build_settings

    encoder = modeling.EncoderOptions(use_tensorflow=True, taps=taps)
    with tf.Graph().as_default(), _tf1.Session() as session:
        inputs = {name: tf.constant(value) for name, value in given.items()}
        with (
            modeling.encoder_options(encoder),
            build_settings.dropout_seed(7, tf.constant(3, tf.int64)),
        ):
            loss = build(bert_compat.modeling().BertConfig.from_dict(tiny.config), inputs)
        variables = {v.op.name: v for v in _tf1.trainable_variables()}
        gradients = dict(zip(variables, tf.gradients(loss, list(variables.values())), strict=True))
        weights = tiny.weights | {
            "cls/squad/output_weights": tiny.weights["output_weights"],
            "cls/squad/output_bias": tiny.weights["output_bias"],
        }
        for name, variable in variables.items():
            variable.load(weights[name], session)
        # SQuAD's model has a pooler that it does not use.
        used = {n: tf.convert_to_tensor(g) for n, g in gradients.items() if g is not None}
        result = session.run([loss, used])
    return result


@pytest.mark.parametrize("which", ["classifier", "squad"])
def test_losses_and_gradients_are_those_of_googles_model(tiny, rng, which):
    def google(config, x):
        texts = (x["input_ids"], x["input_mask"], x["segment_ids"])
        if which == "classifier":
            logits = heads.sequence_logits(config, True, *texts, 2)
            return heads.class_outputs(logits, x["label_ids"])["loss"]
        logits = google_bert.run_squad().create_model(config, True, *texts, False)
        parts = [
            losses.span_loss(part, x["input_mask"], x[f"{name}_positions"])
            for name, part in zip(("start", "end"), logits, strict=True)
        ]
        return sum(parts) / 2

    def ours(config, x):
        task = tasks.squad(config) if which == "squad" else tasks.classifier(config, 2)
        return task.loss(x, task.model(x, True))

    given = _inputs(rng)
    expected, slopes = _loss_and_gradients(tiny, given, google, None)
    loss, gradients = _loss_and_gradients(tiny, given, ours, point_encoder.Taps())
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == slopes.keys() and len(slopes) >= 5 + 3 * 16 + 2
    for name, slope in slopes.items():
        scale = max(1.0, np.abs(slope).max())
        assert_close(gradients[name] / scale, slope / scale, "float32", message=name)


def test_the_teacher_gives_the_logits_of_evaluation(tiny, rng):
    config = bert_compat.modeling().BertConfig.from_dict(tiny.config)
    given = _inputs(rng)
    distillation = teacher.Distillation(reading.Checkpoint(tiny.checkpoint), 1.0)
    with teacher.Teacher(tasks.classifier(config, 2), distillation) as model:
        logits = model.run(given)
    assert list(logits) == ["logits"]
    encoder = modeling.EncoderOptions(use_tensorflow=True)
    with classification.Classifier(config, 2, tiny.checkpoint, encoder) as evaluated:
        features = {name: given[name] for name in evaluated.inputs}
        expected = evaluated.run(features, 3, "eval").outputs["logits"]
    assert_close(logits["logits"], expected, "float32")
    with pytest.raises(UserError, match="does not fit the model"):
        teacher.Teacher(tasks.classifier(config, 3), distillation)


def test_a_regression_learns_the_teachers_numbers(tiny):
    config = bert_compat.modeling().BertConfig.from_dict(tiny.config)
    student, numbers = (tf.constant([[1.0], [2.0]]), tf.constant([[4.0], [0.0]]))
    distillation = teacher.Distillation(reading.Checkpoint(tiny.checkpoint), 10.0)
    loss = distillation.loss(
        tasks.regression(config), {"logits": student}, point_encoder.Taps(), {"logits": numbers},
        tf.ones([2, 3]),
    )  # fmt: skip
    assert float(loss) == 10 * (9 + 4) / 2


def test_the_learning_rate_rises_and_falls():
    options = TrainingOptions(num_train_steps=20, num_warmup_steps=4, learning_rate=1.0)
    found = [options.learning_rate_of(step) for step in (0, 1, 3, 4, 5, 19)]
    np.testing.assert_allclose(found, [0, 0.25, 0.75, 0.8, 0.75, 0.05])
    flat = TrainingOptions(num_train_steps=20, num_warmup_steps=0, learning_rate=2.0)
    assert flat.learning_rate_of(0) == 2


# ---- The programs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mrpc(tiny):
    """Arguments of run_classifier_wrap that train the tiny model, calibrated, for int8."""
    pairs = [("the cat sat", "a dog ran"), ("it is red", "yes"), ("no", "the big dog")]
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    rows = [header] + [[str(i % 2), "1", "2", *pairs[i % 3]] for i in range(9)]
    text = "".join("\t".join(row) + "\n" for row in rows)
    folder = tiny.folder / "mrpc"
    folder.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(text)
    common = {
        "task_name": "mrpc",
        "data_dir": folder,
        "vocab_file": tiny.vocab_file,
        "bert_config_file": tiny.config_file,
        "max_seq_length": 12,
        "train_batch_size": 2,
    }
    calibrated = tiny.folder / "calibrated"
    _run(
        classification, **common, do_calib=True, calib_method="max", quant_mode="ft2",
        init_checkpoint=tiny.checkpoint, output_dir=calibrated,
    )  # fmt: skip
    return common | {
        "do_train": True,
        "if_quant": True,
        "init_checkpoint": calibrated / calibration.CHECKPOINT,
        "num_train_epochs": 2,
        "learning_rate": 1e-4,
        "save_checkpoints_steps": 3,
    }


def _last(folder):
    return _read(reading.latest_in(folder))


def _losses(folder):
    """The scalars of each step, of all event files in the order of their names."""
    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in _tf1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@pytest.mark.parametrize("distilled", [False, True])
def test_a_trained_checkpoint_is_evaluated_and_converted(tiny, mrpc, tmp_path, distilled):
    more = {"distillation": True, "teacher": tiny.checkpoint} if distilled else {}
    out = tmp_path / "out"
    arguments = {**mrpc, **more, "do_eval": True, "output_dir": out}
    _run(classification, **arguments, output_logits=tmp_path / "simulated.npy")
    trained, start = _last(out), _read(mrpc["init_checkpoint"])
    for name in start:
        same = np.array_equal(trained[name], start[name])
        assert same == points.is_range_variable(name), name
    assert not [name for name in trained if "quant" in name and "adam" in name]
    events = _losses(out)
    assert sorted(events) == ["learning_rate", "loss"] and sorted(events["loss"]) == list(range(9))
    assert events["learning_rate"][8] == pytest.approx(1e-4 / 9)

    # It is what the op computes: the float model of the same weights is further away.
    conversion.quantize_checkpoint(reading.latest_in(out), tmp_path / "int8.ckpt")
    assert not [name for name in _read(tmp_path / "int8.ckpt") if "adam" in name]
    evaluate = mrpc | {"do_train": False, "if_quant": False, "do_eval": True}
    for name, checkpoint, options in (
        ("op", tmp_path / "int8.ckpt", {"int8_mode": 2}),
        ("float", reading.latest_in(out), {"use_tensorflow_transformer": True}),
    ):
        _run(
            classification, **evaluate | {"init_checkpoint": checkpoint} | options,
            output_dir=tmp_path / name, output_logits=tmp_path / f"{name}.npy",
        )  # fmt: skip
    simulated, op, floats = (
        np.load(tmp_path / f"{name}.npy") for name in ("simulated", "op", "float")
    )
    # Sums of another order may decide a rounding otherwise, in some rows.
    assert np.linalg.norm(simulated - op) < 0.5 * np.linalg.norm(simulated - floats)


def test_layers_of_a_teacher_are_learned_from(tiny, mrpc, tmp_path):
    """The loss of the first step holds their errors, by their scales: none of a layer is 0."""
    common = mrpc | {
        "num_train_epochs": 0.5,
        "distillation": True,
        "teacher": mrpc["init_checkpoint"],
        "distillation_loss_scale": 0,
    }
    found = {}
    for name, more in {
        "none": {},
        "embeddings": {"distill_hidden_states": "0"},
        "one": {"distill_hidden_states": "2"},
        "one doubled": {"distill_hidden_states": 2, "hidden_states_loss_scale": 2},
        "another": {"distill_hidden_states": "3"},
        "two": {"distill_hidden_states": "3,2"},
        "attention": {"distill_attention": "all", "attention_loss_scale": 10},
    }.items():
        _run(classification, **common, **more, output_dir=tmp_path / name)
        found[name] = _losses(tmp_path / name)["loss"][0]
    base = found.pop("none")
    errors = {name: loss - base for name, loss in found.items()}
    assert errors["embeddings"] > 1e-3  # Dropout is the student's alone.
    assert errors["one"] > 1e-2 and errors["attention"] > 1e-2
    assert errors["one doubled"] == pytest.approx(2 * errors["one"], rel=1e-4)
    assert errors["two"] == pytest.approx((errors["one"] + errors["another"]) / 2, rel=1e-4)
    with pytest.raises(UserError, match="holds a training with distill_hidden_states"):
        _run(classification, **common, distill_hidden_states="2", output_dir=tmp_path / "two")


def test_a_mixed_precision_trains_float32_weights_for_the_same_integers(tiny, mrpc, tmp_path):
    losses_ = {}
    # Random numbers of another type are other ones: what dropout drops could not be compared.
    config = tmp_path / "bert_config.json"
    none = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    config.write_text(json.dumps(tiny.config | none))
    mrpc = mrpc | {"bert_config_file": config}
    for mixed in (False, True):
        out = tmp_path / str(mixed)
        _run(classification, **mrpc, mixed_precision=mixed, output_dir=out)
        losses_[mixed] = _losses(out)["loss"]
        trained = _last(out)
        assert {value.dtype.name for value in trained.values()} == {"float32", "int64"}
    assert json.loads((tmp_path / "True" / "training.json").read_text())["mixed_precision"] is True
    assert "mixed_precision" not in json.loads((tmp_path / "False" / "training.json").read_text())
    for step, loss in losses_[False].items():
        assert losses_[True][step] == pytest.approx(loss, rel=0.1, abs=0.05)
    assert losses_[True] != losses_[False]
    with pytest.raises(UserError, match="holds a training with mixed_precision"):
        _run(classification, **mrpc, output_dir=tmp_path / "True")


def test_without_dropout_it_is_a_configuration_without(tiny, mrpc, tmp_path):
    config = tmp_path / "bert_config.json"
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(tiny.config | none))
    _run(classification, **mrpc, dropout=False, output_dir=tmp_path / "flag")
    _run(classification, **mrpc | {"bert_config_file": config}, output_dir=tmp_path / "config")
    by_flag, by_config = _last(tmp_path / "flag"), _last(tmp_path / "config")
    for name, value in by_config.items():
        np.testing.assert_array_equal(by_flag[name], value, err_msg=name)
    described = [
        json.loads((tmp_path / name / "training.json").read_text()) for name in ("flag", "config")
    ]
    assert described[0] == described[1]
    with pytest.raises(UserError, match="holds a training with bert_config attention_probs"):
        _run(classification, **mrpc, output_dir=tmp_path / "flag")


def test_seeds_lead_elsewhere(mrpc, tmp_path):
    for seed in (1, 2):
        _run(classification, **mrpc, seed=seed, output_dir=tmp_path / str(seed))
    name = "bert/pooler/dense/kernel"
    assert not np.array_equal(_last(tmp_path / "1")[name], _last(tmp_path / "2")[name])
    with pytest.raises(UserError, match="holds a training with seed 1 "):
        _run(classification, **mrpc, seed=2, output_dir=tmp_path / "1")
    with pytest.raises(UserError, match=r"seed is 2147483648, expected 0 to 2147483647"):
        _run(classification, **mrpc, seed=2**31, output_dir=tmp_path / "3")


def test_a_teacher_leads_elsewhere(tiny, mrpc, tmp_path):
    """The loss holds the divergence: of the first step, before anything is learned."""
    found = {}
    for scale in (None, 0, 10000):
        more = {}
        if scale is not None:
            more = {
                "distillation": True,
                "teacher": tiny.checkpoint,
                "distillation_loss_scale": scale,
            }
        out = tmp_path / str(scale)
        _run(classification, **mrpc | {"num_train_epochs": 1}, **more, output_dir=out)
        found[scale] = (_losses(out)["loss"], _last(out))
    assert found[0][0] == found[None][0]
    assert found[10000][0][0] > found[0][0][0] + 1e-3
    name = "bert/pooler/dense/kernel"
    assert not np.array_equal(found[10000][1][name], found[0][1][name])


@pytest.mark.parametrize("distilled", [False, True])
def test_a_killed_training_ends_as_one_that_was_not(tiny, mrpc, tmp_path, monkeypatch, distilled):
    more = {"distillation": True, "teacher": tiny.checkpoint} if distilled else {}
    original = batches.batches

    def killed(*arguments):
        for count, batch in enumerate(original(*arguments)):
            if count == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(batches, "batches", killed)
    with pytest.raises(KeyboardInterrupt):
        _run(classification, **mrpc, **more, output_dir=tmp_path / "killed")
    assert reading.latest_in(tmp_path / "killed").endswith("-3")
    monkeypatch.setattr(batches, "batches", original)
    for folder in ("killed", "whole"):
        _run(classification, **mrpc, **more, output_dir=tmp_path / folder)
    resumed, whole = _last(tmp_path / "killed"), _last(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")
    with pytest.raises(UserError, match='holds a training with quant_mode "ft2"'):
        other = {**mrpc, **more, "quant_mode": "ft1"}
        _run(classification, **other, output_dir=tmp_path / "whole")
    if distilled:
        with pytest.raises(UserError, match="holds a training with distillation_loss_scale 10000"):
            other = {**mrpc, **more, "distillation_loss_scale": 1}
            _run(classification, **other, output_dir=tmp_path / "whole")


def test_what_cannot_be_trained_is_refused(tiny, mrpc, tmp_path):
    quantized = tmp_path / "int8.ckpt"
    conversion.quantize_checkpoint(mrpc["init_checkpoint"], quantized)
    taught = {"distillation": True, "teacher": tiny.checkpoint}
    bad_config = tmp_path / "bert_config.json"
    bad_config.write_text(json.dumps(tiny.config | {"num_hidden_layers": 2}))
    for changes, message in (
        ({"init_checkpoint": ""}, "--do_train --if_quant needs --init_checkpoint"),
        ({"init_checkpoint": tiny.checkpoint}, "ranges cannot be used.*--do_calib"),
        ({"do_calib": True}, "calibrate in a run of its own"),
        ({"distillation": True}, "--distillation needs --teacher"),
        ({"teacher": tiny.checkpoint}, "--teacher needs --distillation"),
        ({"do_train": False, "distillation": True}, "--distillation needs --do_train"),
        ({"do_train": False, "mixed_precision": True}, "--mixed_precision needs --do_train"),
        ({"do_train": False, "dropout": False}, "--nodropout needs --do_train"),
        ({"distill_attention": "1"}, "--distill_attention needs --distillation"),
        (taught | {"distill_attention": "0"}, "--distill_attention=0, .* from 1 to 3"),
        (taught | {"distill_hidden_states": "4"}, "--distill_hidden_states=4, .* from 0 to 3"),
        (taught | {"distill_hidden_states": "1,1"}, "--distill_hidden_states=1,1, expected all"),
        (taught | {"distill_hidden_states": "1,,2"}, "--distill_hidden_states=1,,2, expected all"),
        (taught | {"distill_hidden_states": "-1"}, "--distill_hidden_states=-1, expected all"),
        ({"distillation": True, "teacher": quantized}, "--teacher: .* is quantized"),
        ({"bert_config_file": bad_config}, r"do not go together: .* are \(2, 32, 48\)"),
    ):
        with pytest.raises(UserError, match=message):
            _run(classification, **{**mrpc, "do_eval": True, **changes}, output_dir=tmp_path / "o")
    assert not (tmp_path / "o").exists()
    with pytest.raises(FileNotFoundError, match="checkpoint /none not found"):
        more = {"distillation": True, "teacher": "/none"}
        _run(classification, **mrpc, **more, output_dir=tmp_path / "o")


def test_squad_is_trained_for_int8_from_a_teacher(tmp_path):
    tiny, data = make_tiny_squad(tmp_path)
    common = {
        "vocab_file": tiny.vocab_file,
        "bert_config_file": tiny.config_file,
        "train_file": data,
        "max_seq_length": 12,
        "max_query_length": 4,
        "doc_stride": 2,
        "train_batch_size": 1,
        "quant_mode": "ft1",
    }
    calibrated = tmp_path / "calibrated"
    _run(
        question_answering, **common, do_calib=True, calib_method="max",
        init_checkpoint=tiny.checkpoint, output_dir=calibrated,
    )  # fmt: skip
    answers = _run(
        question_answering,
        **common,
        do_train=True,
        if_quant=True,
        do_predict=True,
        predict_file=data,
        distillation=True,
        teacher=tiny.checkpoint,
        num_train_epochs=3,
        init_checkpoint=calibrated / calibration.CHECKPOINT,
        output_dir=tmp_path / "out",
    )
    assert list(answers) == ["q1"]
    trained, start = _last(tmp_path / "out"), _read(calibrated / calibration.CHECKPOINT)
    assert {n for n in start if points.is_range_variable(n)} <= set(trained)
    name = "cls/squad/output_weights"
    assert not np.array_equal(trained[name], start[name])
    assert conversion.quantize_tensors(trained)["bert/encoder/int8_format"] == 1
