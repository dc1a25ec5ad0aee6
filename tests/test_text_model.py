"""load(), encode() and predict(): against google's tokenizer and the runners' own graph."""

import concurrent.futures
import shutil

import numpy as np
import pytest
from conftest import shared_path
from tiny_bert import make_tiny_bert
from tiny_hf import random_tensors, write_hf_folder

import fastertransformer_tf
from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.data import text_features
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import modeling
from fastertransformer_tf.programs import checked_inputs, classification

TEXTS = ["the cat sat", "a big red dog is on the cat", "", "dog", ("the cat", "a dog sat"), "fast"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_bert(tmp_path_factory.mktemp("model"), num_labels=3)


@pytest.fixture(scope="module")
def model(tiny):
    with fastertransformer_tf.load(tiny.folder) as model:
        yield model


def by_classifier(tiny, texts, length=16):
    """Logits and probabilities by google's tokenizer and TensorFlow's transformer."""
    config = checked_inputs.load_config(tiny.config_file, length)
    tokenizer = google_bert.tokenization().FullTokenizer(tiny.vocab_file, do_lower_case=True)
    convert = google_bert.run_classifier()
    features = {name: [] for name in ("input_ids", "input_mask", "segment_ids")}
    for text in texts:
        first, second = (text, None) if isinstance(text, str) else text
        example = convert.InputExample("", first, second, "0")
        feature = convert.convert_single_example(9, example, ["0"], length, tokenizer)
        for name in features:
            features[name].append(getattr(feature, name))
    arrays = {name: np.array(values, np.int32) for name, values in features.items()}
    arrays["label_ids"] = np.zeros(len(texts), np.int32)
    options = modeling.EncoderOptions(use_tensorflow=True)
    with classification.Classifier(config, 3, reading.Checkpoint(tiny.checkpoint), options) as one:
        return one.run(arrays, 8, "reference").outputs


def test_predictions_are_those_of_tensorflow(tiny, model):
    expected = by_classifier(tiny, TEXTS)
    assert model.num_labels == 3
    np.testing.assert_allclose(model.logits(TEXTS), expected["logits"], atol=2e-5)
    np.testing.assert_allclose(model.predict(TEXTS), expected["probabilities"], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 12, 4096])
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_batches_do_not_matter(model, pooling, batch_tokens):
    together = model.encode(TEXTS, pooling=pooling, batch_tokens=batch_tokens)
    assert together.shape == (len(TEXTS), model.config.hidden_size)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(model.encode([text], pooling=pooling)[0], vector, atol=1e-5)
    assert len(np.unique(together.round(4), axis=0)) == len(TEXTS)


def test_threads_share_a_model(model):
    expected = model.encode(TEXTS)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(lambda _: model.encode(TEXTS), range(32)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_batches_of_ones_own(tiny, model):
    """As servers fill them: tokens of many calls, scored together."""
    rows = [row for text in TEXTS for row in model.tokenize([text])]
    np.testing.assert_allclose(model.predict_batch(rows), model.predict(TEXTS), atol=1e-5)
    with fastertransformer_tf.load(tiny.folder, threads=1) as alone:
        assert alone._model.session._config.intra_op_parallelism_threads == 1
        np.testing.assert_allclose(alone.predict(TEXTS), model.predict(TEXTS), atol=1e-5)


def test_a_pair_needs_segments(tmp_path):
    tiny = make_tiny_bert(tmp_path, type_vocab_size=1)
    with fastertransformer_tf.load(tiny.folder) as model:
        assert model.encode(["the cat"]).shape == (1, 32)
        with pytest.raises(
            UserError, match="text 1 is a pair, but type_vocab_size of the model is"
        ):
            model.encode(["the cat", ("the cat", "a dog")])


def test_no_text(model):
    assert model.encode([]).shape == (0, model.config.hidden_size)
    assert model.predict([]).shape == (0, 3)


MANY = np.random.default_rng(3).integers(1, 60, 200).tolist()


@pytest.mark.parametrize("lengths", [[5, 9, 9, 2, 30], [1], [7] * 9, MANY, []])
@pytest.mark.parametrize("batch_tokens", [1, 20, 1000])
@pytest.mark.parametrize("batch_rows", [None, 1, 3])
def test_batch_places(lengths, batch_tokens, batch_rows):
    found = list(text_features.batches(lengths, batch_tokens, batch_rows))
    assert sorted(place for places in found for place in places) == list(range(len(lengths)))
    for places in found:
        longest = max(lengths[place] for place in places)
        assert len(places) == 1 or longest * len(places) <= batch_tokens
        assert batch_rows is None or len(places) <= batch_rows


HARD = [
    "Hello,   world!\t(again)", "naïve café ÀÉÎ", "中文 mixed 漢字kana かな",
    "a\u00adb\u200bc\ufeff",
    "tabs\tand\nnew\r\nlines\x00\x07", "don't stop-me_now $5.00 €7", "x" * 150 + " " + "y" * 250,
    "[CLS] the [SEP] cat [MASK]", "ﬁne ½ ² Ⅳ", "emoji 😀 👩‍👩‍👧 🇩🇪", "İstanbul ß ǅ",
    "…—–‘’“”", " ", "",
]  # fmt: skip


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("length", [3, 8, 128])
def test_ids_are_googles(shared_data, lower, length):
    folder = shared_path(shared_data, "minilm_mrpc")
    dev = shared_path(shared_data, "glue_data", "MRPC", "dev.tsv").read_text(encoding="utf-8-sig")
    rows = [line.split("\t") for line in dev.splitlines()[1:]]
    pairs = [(row[3], row[4]) for row in rows[:100]] + list(zip(HARD, HARD[::-1], strict=True))
    texts = [*HARD, *(row[3] for row in rows[100:200]), *pairs]
    vocab = str(folder / "vocab.txt")
    found = text_features.TextTokenizer(vocab, lower, 30522).rows(texts, length)
    tokenizer = google_bert.tokenization().FullTokenizer(vocab, do_lower_case=lower)
    convert = google_bert.run_classifier()
    for text, row in zip(texts, found, strict=True):
        first, second = (text, None) if isinstance(text, str) else text
        example = convert.InputExample("", first, second, "0")
        feature = convert.convert_single_example(9, example, ["0"], length, tokenizer)
        real = sum(feature.input_mask)
        assert row.ids == feature.input_ids[:real], text
        assert row.first == real - sum(feature.segment_ids), text


def test_mrpc_accuracy(shared_data):
    folder = shared_path(shared_data, "minilm_mrpc")
    dev = shared_path(shared_data, "glue_data", "MRPC", "dev.tsv").read_text(encoding="utf-8-sig")
    rows = [line.split("\t") for line in dev.splitlines()[1:]]
    with fastertransformer_tf.load(folder, max_seq_length=128) as model:
        predicted = model.predict([(row[3], row[4]) for row in rows]).argmax(1)
    accuracy = np.mean(predicted == [int(row[0]) for row in rows])
    assert accuracy == pytest.approx(0.8063725, abs=1e-6)


def test_hugging_face_folder(tmp_path, rng):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog"]
    write_hf_folder(tmp_path / "hf", random_tensors(rng), vocab=vocab)
    with fastertransformer_tf.load(tmp_path / "hf") as model:
        assert model.num_labels == 0
        assert np.isfinite(model.encode(["the cat", "dog"])).all()
        with pytest.raises(UserError, match="has no output_weights, expected a model"):
            model.predict(["the cat"])


@pytest.mark.parametrize(("floatx", "tolerance"), [("bfloat16", 0.2), ("float16", 0.02)])
def test_other_types(tiny, model, floatx, tolerance):
    with fastertransformer_tf.load(tiny.folder, floatx=floatx) as other:
        found = other.encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model.encode(TEXTS), atol=tolerance)


def test_tensorflows_own_graph_to_compare_with(tiny, model):
    with fastertransformer_tf.load(tiny.folder, use_tensorflow=True) as other:
        kinds = {op.type for op in other._model.graph.get_operations()}
        assert "BertEncoder" not in kinds and "Softmax" in kinds
        np.testing.assert_allclose(other.encode(TEXTS), model.encode(TEXTS), atol=2e-5)
        np.testing.assert_allclose(other.predict(TEXTS), model.predict(TEXTS), atol=1e-5)
    assert "BertEncoder" in {op.type for op in model._model.graph.get_operations()}
    with pytest.raises(ValueError, match="remove_padding needs the op"):
        fastertransformer_tf.load(tiny.folder, use_tensorflow=True, remove_padding=True)


def test_mistakes(tiny, model, tmp_path):
    with pytest.raises(UserError, match="texts is the string 'the cat', expected a list"):
        model.encode("the cat")
    with pytest.raises(UserError, match="text 1 has half of a surrogate pair, expected Unicode"):
        model.encode(["the cat", ("a dog", "the \ud800")])
    with pytest.raises(UserError, match="text 1 is 7, expected a string or two"):
        model.encode(["the cat", 7])
    with pytest.raises(UserError, match="text 0 is .*expected a string or two"):
        model.encode([("a", "b", "c")])
    with pytest.raises(UserError, match="pooling is 'max', expected mean, cls, pooler"):
        model.encode(["a"], pooling="max")
    with pytest.raises(UserError, match="batch_tokens is 0"):
        model.encode(["a"], batch_tokens=0)
    with pytest.raises(UserError, match="max_seq_length is 2, expected 3 to"):
        fastertransformer_tf.load(tiny.folder, max_seq_length=2)
    with pytest.raises(UserError, match="threads is 0, expected at least 1"):
        fastertransformer_tf.load(tiny.folder, threads=0)
    with pytest.raises(FileNotFoundError, match="is not a folder, expected one with"):
        fastertransformer_tf.load(tmp_path / "nothing")
    shutil.copy(tiny.config_file, tmp_path)
    with pytest.raises(FileNotFoundError, match="has no checkpoint, expected"):
        fastertransformer_tf.load(tmp_path)
    with pytest.raises(UserError, match="int8"):
        fastertransformer_tf.load(tiny.folder, int8_mode=2)
