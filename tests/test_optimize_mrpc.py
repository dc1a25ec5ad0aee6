"""A classifier that bert-tensorflow's own graph exported, optimized, on MRPC's dev set."""

from __future__ import annotations

import google_graphs as google
import numpy as np
import pytest
import tensorflow as tf
from conftest import shared_path

import fastertransformer_tf
from fastertransformer_tf import google_bert
from fastertransformer_tf.data import glue, glue_features
from fastertransformer_tf.errors import UserError

tf1 = tf.compat.v1
KEYS = ("input_ids", "input_mask", "segment_ids")


@pytest.fixture(scope="module")
def mrpc(shared_data, tmp_path_factory):
    """The features of the dev set, the SavedModel and its logits."""
    model = shared_path(shared_data, "minilm_mrpc")
    data = shared_path(shared_data, "glue_data", "MRPC")
    task = glue.TASKS["mrpc"]
    tokenizer = google_bert.tokenization().FullTokenizer(str(model / "vocab.txt"), True)
    features = glue_features.make_features(
        task.examples(str(data), "dev"), task.get_labels(), 128, tokenizer
    )
    folder = tmp_path_factory.mktemp("mrpc") / "model"
    google.export_classifier(model / "model.ckpt", model / "bert_config.json", folder)
    return features, folder, logits_of(folder, features)


def logits_of(folder, features) -> np.ndarray:
    with tf.Graph().as_default(), tf1.Session() as session:
        meta = tf1.saved_model.load(session, ["serve"], str(folder))
        signature = meta.signature_def["serving_default"]
        found = []
        for begin in range(0, len(features["input_ids"]), 24):
            feeds = {signature.inputs[k].name: features[k][begin : begin + 24] for k in KEYS}
            found.append(session.run(signature.outputs["logits"].name, feeds))
        return np.concatenate(found)


def accuracy(logits: np.ndarray, features) -> float:
    return float(np.mean(logits.argmax(-1) == features["label_ids"]))


@pytest.mark.parametrize("remove_padding", [False, True])
def test_float32(mrpc, tmp_path, remove_padding) -> None:
    features, folder, expected = mrpc
    assert abs(accuracy(expected, features) - 0.8063725) < 1e-6
    fastertransformer_tf.optimize(folder, tmp_path / "fast", remove_padding=remove_padding)
    actual = logits_of(tmp_path / "fast", features)
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)
    assert abs(accuracy(actual, features) - 0.8063725) < 1e-6


@pytest.mark.parametrize(
    ("changes", "loss"),
    [({"floatx": "bfloat16"}, 0.01), ({"int8_mode": 1}, 0.02)],
    ids=str,
)
def test_other_types(mrpc, tmp_path, changes, loss) -> None:
    features, folder, _ = mrpc
    few = {key: features[key][:32] for key in KEYS}
    fastertransformer_tf.optimize(
        folder, tmp_path / "fast", remove_padding=True, sample_inputs=few, **changes
    )
    actual = accuracy(logits_of(tmp_path / "fast", features), features)
    print(changes, actual)
    assert actual > 0.8063725 - loss


def test_int8_mode_2_by_largest_magnitudes_is_refused(mrpc, tmp_path) -> None:
    """MiniLM's hidden states have outliers: mode 2 needs ranges of --do_calib."""
    features, folder, _ = mrpc
    few = {key: features[key][:32] for key in KEYS}
    with pytest.raises(UserError, match="logits of serving_default is off by"):
        fastertransformer_tf.optimize(folder, tmp_path / "fast", sample_inputs=few, int8_mode=2)
    assert not (tmp_path / "fast").exists()
