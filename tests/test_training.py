"""training: it learns, goes on after a kill with the next batch, refuses other settings."""

import json

import numpy as np
import pytest
import tensorflow as tf

from fastertransformer_tf import bert_compat, training

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
    return training.TrainingOptions(
        **{
            "train_batch_size": 8,
            "num_train_steps": 60,
            "num_warmup_steps": 6,
            "learning_rate": 5e-3,
            "save_checkpoints_steps": 20,
            **changes,
        }
    )


def _loss(prefix, config, features):
    """Mean loss without dropout, from a checkpoint."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        from fastertransformer_tf import modeling

        inputs = {n: tf.constant(v) for n, v in features.items()}
        with modeling.encoder_options(modeling.EncoderOptions(use_tensorflow=True)):
            loss = bert_compat.create_classifier_model(
                config,
                False,
                inputs["input_ids"],
                inputs["input_mask"],
                inputs["segment_ids"],
                inputs["label_ids"],
                2,
                False,
            )[0]
        tf.compat.v1.train.Saver().restore(session, prefix)
        return float(session.run(loss))


def test_learns_and_saves(tmp_path, config, features):
    build = training.classifier_loss(config, 2)
    prefix = training.train(build, features, _options(), tmp_path)
    assert prefix.endswith("model.ckpt-60")
    assert _loss(prefix, config, features) < 0.2 < 0.5 < _loss_at_start(tmp_path, config, features)
    reader = tf.train.load_checkpoint(prefix)
    assert reader.get_tensor("global_step") == 60
    assert reader.has_tensor("bert/encoder/layer_0/attention/self/query/kernel/adam_m")
    assert tf.train.latest_checkpoint(str(tmp_path)) == prefix
    # Done already: nothing is trained again.
    assert training.train(build, features, _options(), tmp_path) == prefix


def _loss_at_start(tmp_path, config, features):
    first = training.train(
        training.classifier_loss(config, 2),
        features,
        _options(num_train_steps=1, num_warmup_steps=1),
        tmp_path / "start",
    )
    return _loss(first, config, features)


def test_resumes_after_a_kill_with_the_next_batch(tmp_path, config, features, monkeypatch):
    seen = []
    batches = training._batches

    def recorded(*args, stop=None):
        for batch in batches(*args):
            if stop is not None and len(seen) >= stop:
                raise KeyboardInterrupt
            seen.append(batch["input_ids"])
            yield batch

    build = training.classifier_loss(config, 2)
    monkeypatch.setattr(training, "_batches", lambda *a: recorded(*a, stop=33))
    with pytest.raises(KeyboardInterrupt):
        training.train(build, features, _options(), tmp_path)
    assert tf.train.latest_checkpoint(str(tmp_path)).endswith("-20")
    monkeypatch.setattr(training, "_batches", recorded)
    prefix = training.train(build, features, _options(), tmp_path)
    # Step 20 came again, with the batch that it had: 33 batches, then 40 from step 20.
    assert len(seen) == 73
    for before, after in zip(seen[20:33], seen[33:46], strict=True):
        np.testing.assert_array_equal(before, after)
    # Weights and optimizer end as those of a training that was not killed, to the last bit.
    monkeypatch.setattr(training, "_batches", batches)
    whole = _variables(training.train(build, features, _options(), tmp_path / "whole"))
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
            with bert_compat.dropout_seed(seed, step):
                two = [bert_compat.dropout(tf.ones([1000]), 0.25) for _ in range(2)]
            return np.array([session.run(two, {step: s}) for s in steps])

    first = drops(7, [0, 1])
    np.testing.assert_array_equal(first, drops(7, [0, 1]))
    kinds = np.concatenate([first.reshape(4, 1000), drops(8, [0]).reshape(2, 1000)])
    assert len(np.unique(kinds, axis=0)) == 6
    np.testing.assert_allclose(np.unique(kinds), [0, 1 / 0.75])
    assert abs((kinds == 0).mean() - 0.25) < 0.03


def test_an_epoch_holds_every_example_once(features):
    stream = training._batches(features, NUM, _options(), 0)
    for _ in range(2):
        ids = [next(stream) for _ in range(NUM // 8)]
        assert sum(len(b["label_ids"]) for b in ids) == NUM
        assert sum(int(b["input_ids"].sum()) for b in ids) == features["input_ids"].sum()
    assert all(b["input_ids"].shape[1] == b["input_mask"].sum(1).max() for b in ids)


def test_other_settings_and_bad_input_are_refused(tmp_path, config, features):
    build = training.classifier_loss(config, 2)
    options = _options(num_train_steps=2, num_warmup_steps=0)
    training.train(build, features, options, tmp_path, settings={"task": "mrpc"})
    with pytest.raises(ValueError, match=r"task 'mrpc' \(now 'cola'\)"):
        training.train(build, features, options, tmp_path, settings={"task": "cola"})
    (tmp_path / "training.json").unlink()
    with pytest.raises(ValueError, match="that this program did not train"):
        training.train(build, features, options, tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint /none not found"):
        training.train(build, features, options, tmp_path / "n", init_checkpoint="/none")
    with pytest.raises(ValueError, match="expected the same number"):
        training.train(build, features | {"label_ids": np.zeros(3)}, options, tmp_path / "n")
    for bad in ({"learning_rate": 0}, {"train_batch_size": 0}, {"num_warmup_steps": 61}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            _options(**bad)
    with pytest.raises(ValueError, match="make no step"):
        training.TrainingOptions.from_epochs(3, 1.0, 0.1, 8)
    with pytest.raises(ValueError, match="train_batch_size is 0, expected at least 1"):
        training.TrainingOptions.from_epochs(3, 1.0, 0.1, 0)


def test_a_loss_that_is_not_finite_stops(tmp_path, config, features):
    def build(inputs):
        return training.classifier_loss(config, 2)(inputs) * np.float32("nan")

    with pytest.raises(FloatingPointError, match="loss of step 0 is nan"):
        training.train(build, features, _options(), tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["train_batch_size"] == 8
    assert tf.train.latest_checkpoint(str(tmp_path)) is None


def test_squad_loss_trains(tmp_path, config, features):
    del features["label_ids"]
    positions = np.full(NUM, 2, np.int32)
    features |= {"start_positions": positions, "end_positions": positions + 1}
    prefix = training.train(training.squad_loss(config), features, _options(), tmp_path)
    assert tf.train.load_checkpoint(prefix).has_tensor("cls/squad/output_weights")
