"""google_bert: bert-tensorflow's readers and answers in a process without TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from fastertransformer_tf import google_bert

SCRIPT = """
import sys
sys.modules["tensorflow"] = None
from fastertransformer_tf import google_bert
from fastertransformer_tf.data import glue, glue_features, glue_metrics
from fastertransformer_tf.data import squad_answers, squad_scores, squad_windows, text_features
from fastertransformer_tf.quantization import calibrating

(folder,) = sys.argv[1:]
tokenizer = google_bert.tokenization().FullTokenizer(f"{folder}/vocab.txt")
example = google_bert.run_classifier().InputExample("1", "the cat", "a dog", "1")
features = glue_features.make_features([example], ["0", "1"], 8, tokenizer)
print(features["input_ids"].tolist(), google_bert.run_squad().FLAGS.max_seq_length)
try:
    google_bert.run_squad().create_model
    google_bert.run_squad().modeling.BertModel
except Exception as error:
    print(type(error).__name__, error)
"""


def test_data_needs_no_tensorflow(tmp_path):
    words = "[PAD] [UNK] [CLS] [SEP] the cat a dog".split()
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ids, told = done.stdout.splitlines()
    assert ids == "[[2, 4, 5, 3, 6, 7, 3, 0]] 384"
    assert told.startswith("AttributeError") and "there is no TensorFlow here" in told


def test_modules_that_build_graphs_are_patched():
    from fastertransformer_tf.models import bert_compat, bert_layers

    assert bert_compat.modeling().dropout is bert_layers.dropout
    assert google_bert.run_classifier().modeling.BertModel is bert_compat.modeling().BertModel


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert", None)
    monkeypatch.delitem(sys.modules, "bert.run_squad", raising=False)
    with pytest.raises(ValueError, match="bert-tensorflow==1.0.4"):
        google_bert.run_squad()
