"""training: it learns, goes on after a kill with the next batch, refuses other settings."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY

from fastertransformer_tf import google_bert, spec
from fastertransformer_tf.checkpoints import reading, writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.graphs import variables
from fastertransformer_tf.models import bert_compat, bert_layers, build_settings, heads, modeling
from fastertransformer_tf.training import batches, loop, losses, optimizer, tasks
from fastertransformer_tf.training.folder import TrainingFolder
from fastertransformer_tf.training.options import TrainingOptions

NUM, SEQ = 24, 12


@pytest.fixture
def config():
    return bert_compat.modeling().BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=SEQ,
        type_vocab_size=2,
        hidden_act="gelu_erf",
    )


@pytest.fixture
def features():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, NUM).astype(np.int32)
    mask = np.arange(SEQ) < rng.integers(4, SEQ, NUM)[:, None]
    ids = np.where(mask, rng.integers(2, 20, (NUM, SEQ)), 0).astype(np.int32)
    ids[:, 1] = labels  # What there is to learn.
    return {
        "input_ids": ids,
        "input_mask": mask.astype(np.int32),
        "segment_ids": np.zeros((NUM, SEQ), np.int32),
        "label_ids": labels,
    }


def _options(**changes):
    return TrainingOptions(
        **{
            "train_batch_size": 8,
            "num_train_steps": 60,
            "num_warmup_steps": 6,
            "learning_rate": 5e-3,
            "save_checkpoints_steps": 20,
            **changes,
        }
    )


def _train(task, features, options, path, **others):
    with TrainingFolder(path) as folder:
        return loop.train(task, features, options, folder, **others)


def _with_loss(task, change):
    """The task with another loss."""
    loss = task.loss
    return dataclasses.replace(task, loss=lambda inputs, logits: change(loss(inputs, logits)))


def _loss(prefix, config, features):
    """Mean loss without dropout, from a checkpoint."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = {n: tf.constant(v) for n, v in features.items()}
        with modeling.encoder_options(modeling.EncoderOptions(use_tensorflow=True)):
            texts = (inputs[name] for name in spec.MODEL_INPUTS)
            logits = heads.sequence_logits(config, False, *texts, 2)
            loss = heads.class_outputs(logits, inputs["label_ids"])["loss"]
        tf.compat.v1.train.Saver().restore(session, prefix)
        return float(session.run(loss))


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_optimizer_is_googles(rng, warmup):
    """The same weights and moments after every step, to the last bits; a weight of each kind."""
    start = {
        "bert/embeddings/word_embeddings": rng.normal(size=(7, 3)),
        "bert/encoder/layer_0/output/dense/kernel": rng.normal(size=(3, 4)),
        "bert/encoder/layer_0/output/dense/bias": rng.normal(size=4),
        "bert/encoder/layer_0/output/LayerNorm/gamma": rng.normal(size=4),
        "unused": rng.normal(size=2),
    }
    options = _options(num_train_steps=8, num_warmup_steps=warmup, learning_rate=0.1)

    def run(build):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            step = tf.compat.v1.train.get_or_create_global_step()
            w = {
                name: variables.get_variable(name, value.shape, tf.float32)
                for name, value in start.items()
            }
            words, kernel, bias, gamma, _ = w.values()
            # Words that occur twice, once and never; large enough to be clipped in some steps.
            rows = tf.nn.embedding_lookup(words, [1, 1, 5])
            loss = tf.reduce_sum(tf.tanh(rows @ kernel + bias) * gamma) * 0.3
            train = build(loss, step)
            session.run(tf.compat.v1.global_variables_initializer())
            for name, value in start.items():
                w[name].load(value, session)
            everything = {v.op.name: v for v in tf.compat.v1.global_variables()}
            found = []
            for _ in range(6):
                session.run(train)
                found.append(session.run(everything))
            return found

    google = run(
        lambda loss, step: google_bert.load("optimization").create_optimizer(
            loss, options.learning_rate, options.num_train_steps, warmup, use_tpu=False
        )
    )
    ours = run(lambda loss, step: optimizer.train_step(loss, step, options))
    for expected, actual in zip(google, ours, strict=True):
        assert actual.keys() == expected.keys() and len(actual) == 1 + 5 + 2 * 4
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol=2e-6, atol=1e-7, err_msg=name)
    moved = [name for name in start if not np.array_equal(ours[-1][name], np.float32(start[name]))]
    assert moved == list(start)[:-1]


def test_learns_and_saves(tmp_path, config, features):
    task = tasks.classifier(config, 2)
    prefix = _train(task, features, _options(), tmp_path)
    assert prefix.endswith("model.ckpt-60")
    assert _loss(prefix, config, features) < 0.2 < 0.5 < _loss_at_start(tmp_path, config, features)
    reader = tf.train.load_checkpoint(prefix)
    assert reader.get_tensor("global_step") == 60
    assert reader.has_tensor("bert/encoder/layer_0/attention/self/query/kernel/adam_m")
    assert tf.train.latest_checkpoint(str(tmp_path)) == prefix == reading.latest_in(tmp_path)
    # Done already: nothing is trained again.
    assert _train(task, features, _options(), tmp_path) == prefix


def _loss_at_start(tmp_path, config, features):
    first = _train(
        tasks.classifier(config, 2),
        features,
        _options(num_train_steps=1, num_warmup_steps=1),
        tmp_path / "start",
    )
    return _loss(first, config, features)


def test_resumes_after_a_kill_with_the_next_batch(tmp_path, config, features, monkeypatch):
    seen = []
    original = batches.batches

    def recorded(*args, stop=None):
        for batch in original(*args):
            if stop is not None and len(seen) >= stop:
                raise KeyboardInterrupt
            seen.append(batch["input_ids"])
            yield batch

    task = tasks.classifier(config, 2)
    monkeypatch.setattr(batches, "batches", lambda *a: recorded(*a, stop=33))
    with pytest.raises(KeyboardInterrupt):
        _train(task, features, _options(), tmp_path)
    assert tf.train.latest_checkpoint(str(tmp_path)).endswith("-20")
    monkeypatch.setattr(batches, "batches", recorded)
    prefix = _train(task, features, _options(), tmp_path)
    # Step 20 came again, with the batch that it had: 33 batches, then 40 from step 20.
    assert len(seen) == 73
    for before, after in zip(seen[20:33], seen[33:46], strict=True):
        np.testing.assert_array_equal(before, after)
    # Weights and optimizer end as those of a training that was not killed, to the last bit.
    monkeypatch.setattr(batches, "batches", original)
    whole = _variables(_train(task, features, _options(), tmp_path / "whole"))
    resumed = _variables(prefix)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def _variables(prefix):
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def test_dropout_is_a_function_of_seed_step_and_place():
    """Another step or place in the graph drops other values; a graph built again, the same."""

    def drops(seed, steps):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            step = tf.compat.v1.placeholder(tf.int64, [])
            with build_settings.dropout_seed(seed, step):
                two = [bert_layers.dropout(tf.ones([1000]), 0.25) for _ in range(2)]
            return np.array([session.run(two, {step: s}) for s in steps])

    first = drops(7, [0, 1])
    np.testing.assert_array_equal(first, drops(7, [0, 1]))
    kinds = np.concatenate([first.reshape(4, 1000), drops(8, [0]).reshape(2, 1000)])
    assert len(np.unique(kinds, axis=0)) == 6
    np.testing.assert_allclose(np.unique(kinds), [0, 1 / 0.75])
    assert abs((kinds == 0).mean() - 0.25) < 0.03


def test_an_epoch_holds_every_example_once(features):
    stream = batches.batches(features, _options(), 0)
    for _ in range(2):
        ids = [next(stream) for _ in range(NUM // 8)]
        assert sum(len(b["label_ids"]) for b in ids) == NUM
        assert sum(int(b["input_ids"].sum()) for b in ids) == features["input_ids"].sum()
    assert all(b["input_ids"].shape[1] == b["input_mask"].sum(1).max() for b in ids)


def test_other_settings_and_bad_input_are_refused(tmp_path, config, features):
    task = tasks.classifier(config, 2)
    options = _options(num_train_steps=2, num_warmup_steps=0)
    _train(task, features, options, tmp_path, settings={"task": "mrpc"})
    with pytest.raises(UserError, match=r'task "mrpc" \(now "cola"\)'):
        _train(task, features, options, tmp_path, settings={"task": "cola"})
    (tmp_path / "training.json").unlink()
    with pytest.raises(UserError, match="that this program did not train"):
        _train(task, features, options, tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint /none not found"):
        _train(task, features, options, tmp_path / "n", init_checkpoint="/none")
    with pytest.raises(ValueError, match="expected the same number"):
        _train(task, features | {"label_ids": np.zeros(3)}, options, tmp_path / "n")
    for bad in (
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"train_batch_size": 0},
        {"num_warmup_steps": 61},
    ):
        with pytest.raises(UserError, match=next(iter(bad))):
            _options(**bad)
    for arguments, message in (
        ((3, 1.0, 0.1, 8), "make no step"),
        ((3, 1.0, 0.1, 0), "train_batch_size is 0, expected at least 1"),
        ((3, float("nan"), 0.1, 1), "num_train_epochs is nan"),
        ((3, float("inf"), 0.1, 1), "num_train_epochs is inf"),
        ((3, 1.0, 1.5, 1), "warmup_proportion is 1.5"),
    ):
        with pytest.raises(UserError, match=message):
            TrainingOptions.from_epochs(*arguments)


SHORT = {"num_train_steps": 4, "num_warmup_steps": 0, "save_checkpoints_steps": 2}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"train_batch_size": 4}, "train_batch_size"),
        ({"seed": 1}, "seed"),
        ({"num_warmup_steps": 1}, "num_warmup_steps"),
        ({"num_train_steps": 3}, "num_train_steps"),
        ("one other id", "features"),
        ("other weights", "init_checkpoint"),
        ("no weights", "init_checkpoint"),
    ],
)
def test_what_changes_the_result_is_refused(tmp_path, config, features, changes, name):
    task = tasks.classifier(config, 2)
    weights = {"output_bias": np.float32([1, 2])}
    writing.save_checkpoint(tmp_path / "init", weights)
    out, init = tmp_path / "out", {"init_checkpoint": str(tmp_path / "init")}
    _train(task, features, _options(**SHORT), out, **init)
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    options = _options(**SHORT | changes) if isinstance(changes, dict) else _options(**SHORT)
    if changes == "one other id":
        features["input_ids"][3, 2] += 1
    elif changes == "other weights":
        writing.save_checkpoint(tmp_path / "init", {"output_bias": np.float32([1, 2.5])})
    elif changes == "no weights":
        init = {}
    with pytest.raises(UserError, match=f"holds a training with {name} "):
        _train(task, features, options, out, **init)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept


def test_what_changes_no_result_is_accepted(tmp_path, config, features):
    task = tasks.classifier(config, 2)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        weights = {"output_bias": np.float32([1, 2])}
        writing.save_checkpoint(tmp_path / folder / folder, weights)
    first = _train(
        task, features, _options(**SHORT), tmp_path / "out",
        init_checkpoint=str(tmp_path / "a" / "a"),
    )  # fmt: skip
    options = _options(**SHORT | {"save_checkpoints_steps": 1, "keep_checkpoints": 2})
    again = _train(
        task, features, options, tmp_path / "out", init_checkpoint=str(tmp_path / "b" / "b")
    )
    assert again == first and first.endswith("model.ckpt-4")


def test_more_epochs_go_on_with_the_new_learning_rate(tmp_path, config, features, capsys):
    task = tasks.classifier(config, 2)
    _train(task, features, _options(**SHORT), tmp_path)
    longer = _options(**SHORT | {"num_train_steps": 8, "num_warmup_steps": 1})
    prefix = _train(task, features, longer, tmp_path)
    assert prefix.endswith("model.ckpt-8")
    assert "num_train_steps 4 becomes 8" in capsys.readouterr().out
    # Now they are the folder's settings.
    assert _train(task, features, longer, tmp_path) == prefix
    with pytest.raises(UserError, match=r"num_train_steps 8 \(now 4\)"):
        _train(task, features, _options(**SHORT), tmp_path)
    # At step 4 of 8 the rate is half the highest: it was 0 at step 4 of 4.
    before, after = (_variables(str(tmp_path / f"model.ckpt-{step}")) for step in (4, 6))
    moved = np.abs(after["output_weights"] - before["output_weights"]).max()
    assert moved > 1e-3


@pytest.mark.parametrize("how", ["move", "copy", "absolute paths"])
def test_a_folder_may_be_moved_and_copied(tmp_path, config, features, how):
    task = tasks.classifier(config, 2)
    out, other = tmp_path / "out", tmp_path / "other"
    whole = _variables(_train(task, features, _options(**SHORT), tmp_path / "whole"))
    _train(task, features, _options(**SHORT), out)
    # As a kill at step 3 leaves it.
    for file in out.glob("model.ckpt-4*"):
        file.unlink()
    root = f"{out}/" if how == "absolute paths" else ""
    names = [f'"{root}model.ckpt-{step}"' for step in (0, 2)]
    (out / "checkpoint").write_text(
        f"model_checkpoint_path: {names[1]}\n"
        + "".join(f"all_model_checkpoint_paths: {name}\n" for name in names)
    )
    kept = {}
    if how == "move":
        out.rename(other)
    else:
        shutil.copytree(out, other)
        kept = {path.name: path.read_bytes() for path in out.iterdir()}
    prefix = _train(task, features, _options(**SHORT), other)
    assert prefix == str(other / "model.ckpt-4")
    resumed = _variables(prefix)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert {path.name: path.read_bytes() for path in out.glob("*")} == kept
    assert reading.latest_in(other) == prefix


@pytest.mark.parametrize("damage", ["no file", "garbage", "names another"])
def test_a_folder_without_usable_checkpoint_file_is_refused(tmp_path, config, features, damage):
    task = tasks.classifier(config, 2)
    _train(task, features, _options(**SHORT), tmp_path)
    state = tmp_path / "checkpoint"
    if damage == "no file":
        state.unlink()
    else:
        state.write_text(
            "{{{" if damage == "garbage" else 'model_checkpoint_path: "model.ckpt-9"\n'
        )
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="holds a training, but its file `checkpoint`"):
        _train(task, features, _options(**SHORT), tmp_path)
    with pytest.raises(UserError, match="holds a training, but its file `checkpoint`"):
        reading.choose_checkpoint("x", str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"num_train_steps": "many"}', "\0"])
def test_damaged_settings_are_refused(tmp_path, config, features, content):
    task = tasks.classifier(config, 2)
    _train(task, features, _options(**SHORT), tmp_path)
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(UserError, match="is not JSON|expected settings|holds a training with") as e:
        _train(task, features, _options(**SHORT), tmp_path)
    assert str(tmp_path) in str(e.value)
    assert (tmp_path / "training.json").read_text() == content


def test_what_killed_saves_left_is_removed(tmp_path, config, features, capsys):
    task = tasks.classifier(config, 2)
    _train(task, features, _options(**SHORT), tmp_path)
    whole = {path.name for path in tmp_path.iterdir()}
    left = [
        "model.ckpt-6.data-00000-of-00001.tempstate123",
        "model.ckpt-6.index.tempstate123",
        "model.ckpt-6.data-00000-of-00001",
        "model.ckpt-3.data-00000-of-00001",
        "checkpoint.tmp0123456789abcdef",
    ]
    mine = ["model.ckpt-2.notes", "checkpoint.tmp.txt", "my-model.ckpt-6.index", "eval_results.txt"]
    for name in left + mine:
        (tmp_path / name).write_text("x")
    _train(task, features, _options(**SHORT), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == whole | set(mine)
    assert "removed what a killed save left" in capsys.readouterr().out
    # In a folder that is not of a training nothing is touched.
    (tmp_path / "other").mkdir()
    for name in left:
        (tmp_path / "other" / name).write_text("x")
    with pytest.raises(UserError, match="holds a training, but"):
        _train(task, features, _options(**SHORT), tmp_path / "other")
    assert {path.name for path in (tmp_path / "other").iterdir()} == {*left, "training.lock"}


def test_a_killed_first_save_starts_anew(tmp_path, config, features):
    task = tasks.classifier(config, 2)
    whole = _variables(_train(task, features, _options(**SHORT), tmp_path / "whole"))
    out = tmp_path / "out"
    _train(task, features, _options(**SHORT), out)
    for path in out.iterdir():
        if path.name != "training.json" and not path.name.startswith("model.ckpt-0."):
            path.unlink()
    resumed = _variables(_train(task, features, _options(**SHORT), out))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


HOLD = """
import sys, time
from fastertransformer_tf.training.folder import TrainingFolder

with TrainingFolder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_training_is_refused_until_the_first_ends(tmp_path, config, features):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "out"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another training is running in"):
            TrainingFolder(tmp_path / "out").__enter__()
    finally:
        holder.kill()
        holder.wait()
    with TrainingFolder(tmp_path / "out") as folder:
        assert folder.last is None


def test_the_lock_follows_no_symbolic_link(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "out").mkdir()
    os.symlink(target, tmp_path / "out" / "training.lock")
    with pytest.raises(UserError, match="training.lock is a symbolic link, expected a file"):
        TrainingFolder(tmp_path / "out").__enter__()
    assert target.read_text() == "precious"


def test_a_path_that_tensorflow_takes_for_a_pattern_is_refused(tmp_path):
    with pytest.raises(UserError, match="for a pattern"):
        TrainingFolder(tmp_path / "run[1]").__enter__()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_training(tmp_path, config, features, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="will need 0 MiB for checkpoints"):
        _train(tasks.classifier(config, 2), features, _options(), tmp_path)
    assert reading.latest_in(tmp_path) is None


def test_a_training_starts_from_a_checkpoint(tmp_path, config, features, capsys):
    """With a rate of almost 0 its first checkpoint holds what init_checkpoint holds."""
    task = tasks.classifier(config, 2)
    source = _variables(_train(task, features, _options(**SHORT), tmp_path / "first"))
    weights = {name: v for name, v in source.items() if "adam" not in name}
    del weights["global_step"], weights["output_bias"]
    writing.save_checkpoint(tmp_path / "init", weights)
    other = _options(**SHORT, learning_rate=1e-30, seed=7)
    prefix = _train(task, features, other, tmp_path / "out", init_checkpoint=tmp_path / "init")
    started = _variables(prefix)
    for name, value in weights.items():
        np.testing.assert_array_equal(started[name], value, err_msg=name)
    assert "initialised at random" in capsys.readouterr().out
    assert started["global_step"] == 4

    for name, value, message in (
        ("bert/pooler/dense/bias", np.zeros(16, np.float16), "is float16 [16], expected float32"),
        ("bert/pooler/dense/bias", np.zeros(3, np.float32), "is float32 [3], expected float32 [16"),
        ("bert/pooler/dense/bias", np.full(16, np.nan, np.float32), "16 values that are not fini"),
    ):
        writing.save_checkpoint(tmp_path / "bad", weights | {name: value})
        with pytest.raises(
            UserError, match=r"does not fit the model to train, 1 of 25 variables"
        ) as caught:
            _train(task, features, other, tmp_path / "n", init_checkpoint=tmp_path / "bad")
        assert message in str(caught.value)
    writing.save_checkpoint(tmp_path / "none", {"x": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match="25 of 25 variables: .* is missing; and 15 more"):
        _train(task, features, other, tmp_path / "n", init_checkpoint=tmp_path / "none")


def test_a_damaged_checkpoint_to_go_on_from_is_told(tmp_path, config, features):
    task = tasks.classifier(config, 2)
    prefix = _train(task, features, _options(**SHORT), tmp_path)
    data = pathlib.Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged or incomplete"):
        _train(task, features, _options(**SHORT), tmp_path)


def test_a_loss_that_is_not_finite_stops(tmp_path, config, features):
    task = _with_loss(tasks.classifier(config, 2), lambda loss: loss * np.float32("nan"))
    with pytest.raises(UserError, match="loss of step 0 is nan"):
        _train(task, features, _options(), tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["train_batch_size"] == 8
    assert reading.latest_in(tmp_path).endswith("model.ckpt-0")


def test_weights_that_are_not_finite_are_not_saved(tmp_path, config, features):
    # Its value is finite, its gradient is not.
    task = _with_loss(
        tasks.classifier(config, 2), lambda loss: loss + tf.sqrt(tf.stop_gradient(loss) - loss)
    )
    with pytest.raises(UserError, match="weights are no longer finite at step 1: a smaller"):
        _train(task, features, _options(num_train_steps=1, num_warmup_steps=0), tmp_path)
    assert reading.latest_in(tmp_path).endswith("model.ckpt-0")


def _span_formula(logits, mask, positions):
    """-log of the softmax over a sequence's real tokens, at its position; the mean."""
    losses = []
    for row, real, position in zip(logits.astype(np.float64), mask != 0, positions, strict=True):
        losses.append(np.log(np.exp(row[real]).sum()) - row[position])
    return np.mean(losses)


def test_squad_loss_is_that_of_real_tokens(features):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 4, (NUM, SEQ)).astype(np.float32)
    mask, positions = features["input_mask"], rng.integers(0, 4, NUM)
    expected = _span_formula(logits, mask, positions)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        given = tf.constant(logits)
        loss = losses.span_loss(given, tf.constant(mask), tf.constant(positions))
        value, gradient = session.run([loss, tf.gradients(loss, given)[0]])
    assert value == pytest.approx(expected, rel=1e-6)
    assert not gradient[mask == 0].any() and np.isfinite(gradient).all()
    assert (gradient[mask != 0] != 0).all()


def test_squad_loss_does_not_depend_on_padding_or_the_batch(config, features):
    """The same questions: alone, in a batch, cut to the longest, padded to S; no dropout."""
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    positions = np.full(NUM, 2, np.int32)
    arrays = features | {"start_positions": positions, "end_positions": positions + 1}
    del arrays["label_ids"]
    longest = int(arrays["input_mask"][:8].sum(1).max())
    assert longest < SEQ
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.set_random_seed(1)
        inputs = {
            name: tf.compat.v1.placeholder(tf.int32, [None] * value.ndim)
            for name, value in arrays.items()
        }
        with modeling.encoder_options(modeling.EncoderOptions(use_tensorflow=True)):
            task = tasks.squad(config)
            loss = task.loss(inputs, task.model(inputs, True))
        norm = tf.linalg.global_norm(tf.gradients(loss, tf.compat.v1.trainable_variables()))
        session.run(tf.compat.v1.global_variables_initializer())

        def run(rows, width):
            return np.array(
                session.run(
                    [loss, norm],
                    {
                        inputs[name]: value[rows, :width] if value.ndim == 2 else value[rows]
                        for name, value in arrays.items()
                    },
                )
            )

        padded, cut = run(slice(0, 8), SEQ), run(slice(0, 8), longest)
        alone = np.mean([run(slice(i, i + 1), SEQ)[0] for i in range(8)])
    np.testing.assert_allclose(cut, padded, rtol=1e-5)
    assert alone == pytest.approx(padded[0], rel=1e-5)


def test_squad_training_learns(tmp_path, config, features):
    del features["label_ids"]
    features["input_ids"][:, 3] = 19  # The answer is where 19 is.
    ids = np.where(features["input_ids"] == 19, 18, features["input_ids"])
    ids[:, 2] = 19
    positions = np.full(NUM, 2, np.int32)
    features |= {"input_ids": ids, "start_positions": positions, "end_positions": positions}
    seen = []
    task = tasks.squad(config)
    for steps in (1, 60):
        options = _options(num_train_steps=steps, num_warmup_steps=0)
        prefix = _train(task, features, options, tmp_path / str(steps))
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            inputs = {name: tf.constant(value) for name, value in features.items()}
            with modeling.encoder_options(modeling.EncoderOptions(use_tensorflow=True)):
                loss = task.loss(inputs, task.model(inputs, True))
            tf.compat.v1.train.Saver().restore(session, prefix)
            seen.append(float(session.run(loss)))
    assert seen[1] < 0.3 < 1 < seen[0]
