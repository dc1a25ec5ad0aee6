"""import_hf: MiniLM against an independent NumPy forward, and every refusal."""

import json
import math
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from tiny_hf import CONFIG, VOCAB, random_tensors, write_hf_folder

from fastertransformer_tf.checkpoints import hugging_face, restoring
from fastertransformer_tf.files import hf_conversion, hf_weights


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def tensors(rng):
    return random_tensors(rng)


def _read(checkpoint):
    reader = tf.train.load_checkpoint(checkpoint)
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}


def test_every_tensor_arrives_under_its_google_name(tmp_path, tensors):
    out = tmp_path / "out"
    imported = hugging_face.import_hf(write_hf_folder(tmp_path / "hf", tensors), out)
    variables = _read(imported.checkpoint)
    assert len(variables) == len(tensors) == imported.num_variables
    layer, hf = "bert/encoder/layer_1", "encoder.layer.1"
    np.testing.assert_array_equal(
        variables[f"{layer}/attention/self/key/kernel"],
        tensors[f"{hf}.attention.self.key.weight"].T,
    )
    np.testing.assert_array_equal(
        variables[f"{layer}/intermediate/dense/kernel"],
        tensors[f"{hf}.intermediate.dense.weight"].T,
    )
    np.testing.assert_array_equal(
        variables[f"{layer}/output/LayerNorm/gamma"], tensors[f"{hf}.output.LayerNorm.weight"]
    )
    np.testing.assert_array_equal(
        variables["bert/embeddings/word_embeddings"], tensors["embeddings.word_embeddings.weight"]
    )
    assert (out / "vocab.txt").read_text().split() == VOCAB
    assert imported.do_lower_case
    assert sorted(p.name for p in out.iterdir()) == [
        "bert_config.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "vocab.txt",
    ]
    # Run again over its own output: the same, nothing left behind.
    hugging_face.import_hf(tmp_path / "hf", out)
    assert len(list(out.iterdir())) == 4


@pytest.mark.parametrize(
    ("hf_act", "google_act"),
    [
        ("gelu", "gelu_erf"),
        ("gelu_new", "gelu"),
        ("gelu_pytorch_tanh", "gelu"),
        ("relu", "relu"),
    ],
)
def test_erf_and_tanh_gelu_are_kept_apart(hf_act, google_act):
    assert hf_conversion.convert_config(CONFIG | {"hidden_act": hf_act})["hidden_act"] == google_act


def test_layer_norm_epsilon_is_kept_only_where_it_differs():
    assert "layer_norm_eps" not in hf_conversion.convert_config(CONFIG)
    config = hf_conversion.convert_config(CONFIG | {"layer_norm_eps": 1e-5})
    assert config["layer_norm_eps"] == 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu', expected one of gelu"),
        ({"model_type": "roberta"}, "model_type is 'roberta', expected 'bert'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"num_attention_heads": 3}, "hidden_size is 8, expected a multiple"),
    ],
)
def test_configurations_of_other_models_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        hf_conversion.convert_config(CONFIG | change)


@pytest.mark.parametrize("head", ["classifier", "qa_outputs"])
def test_the_way_back(tensors, rng, head):
    """Names, layouts and configuration survive google's form; what is not the model's does not."""
    named = {f"bert.{name}": value for name, value in tensors.items()}
    named[f"{head}.weight"] = rng.normal(size=(2, 8)).astype(np.float32)
    named[f"{head}.bias"] = rng.normal(size=2).astype(np.float32)
    hf_config = CONFIG | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5}
    config = hf_conversion.convert_config(hf_config)
    variables, _ = hf_conversion.convert_tensors(named, config)
    more = {"global_step": np.array(7), "bert/encoder/layer_0/output/dense/kernel/adam_m": 0}
    found = hf_conversion.hugging_face_tensors({**variables, **more}, config)
    assert set(found) == set(named)
    for name, value in named.items():
        np.testing.assert_array_equal(found[name], value)
    back = hf_conversion.hugging_face_config(config)
    assert back == {key: hf_config[key] for key in back}
    for name in ("bert/pooler/dense/kernel", "bert/pooler/dense/bias"):
        del variables[name]
    without = hf_conversion.hugging_face_tensors(variables, config)
    assert set(named) - set(without) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_the_way_back_names_what_does_not_fit(tensors):
    config = hf_conversion.convert_config(CONFIG)
    variables, _ = hf_conversion.convert_tensors(tensors, config)
    del variables["bert/encoder/layer_0/output/dense/bias"]
    variables["bert/encoder/layer_1/output/dense/kernel"] = np.zeros((8, 12), np.float32)
    with pytest.raises(ValueError) as caught:
        hf_conversion.hugging_face_tensors(variables, config)
    message = str(caught.value)
    assert "missing: bert/encoder/layer_0/output/dense/bias [8]" in message
    assert "layer_1/output/dense/kernel has shape [8, 12], expected [12, 8]" in message
    with pytest.raises(ValueError, match="hidden_act is 'tanh', expected one of gelu, gelu_erf"):
        hf_conversion.hugging_face_config(config | {"hidden_act": "tanh"})


def test_all_faults_are_listed_at_once(tmp_path, tensors):
    del tensors["encoder.layer.0.output.dense.bias"]
    tensors["encoder.layer.2.extra"] = np.zeros(3, np.float32)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(9, np.float32)
    tensors["pooler.dense.bias"] = np.zeros(8, np.int32)
    with pytest.raises(ValueError) as caught:
        hugging_face.import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "out")
    message = str(caught.value)
    assert "4 tensors" in message
    assert "missing: encoder.layer.0.output.dense.bias [8]" in message
    assert "unknown: encoder.layer.2.extra" in message
    assert "wrong shape: embeddings.LayerNorm.bias is [9], expected [8]" in message
    assert "wrong type: pooler.dense.bias is int32" in message
    assert not (tmp_path / "out").exists()


def test_known_buffers_are_left_out(tmp_path, tensors):
    tensors["embeddings.position_ids"] = np.arange(16)[None]
    imported = hugging_face.import_hf(write_hf_folder(tmp_path / "hf", tensors), tmp_path / "out")
    assert imported.ignored == ("embeddings.position_ids",)


def test_missing_pooler_is_refused_or_written_as_zeros(tmp_path, tensors):
    del tensors["pooler.dense.weight"], tensors["pooler.dense.bias"]
    hf = write_hf_folder(tmp_path / "hf", tensors)
    with pytest.raises(ValueError, match="missing_pooler=zeros"):
        hugging_face.import_hf(hf, tmp_path / "out")
    imported = hugging_face.import_hf(hf, tmp_path / "out", missing_pooler="zeros")
    variables = _read(imported.checkpoint)
    assert variables["bert/pooler/dense/kernel"].shape == (8, 8)
    assert not variables["bert/pooler/dense/kernel"].any()


def test_heads_prefix_and_old_layer_norm_names(tmp_path, tensors, rng):
    named = {}
    for name, value in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        named["bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    heads = {
        "classifier.weight": (3, 8),
        "classifier.bias": (3,),
        "qa_outputs.weight": (2, 8),
        "qa_outputs.bias": (2,),
        "cls.seq_relationship.weight": (2, 8),
        "cls.seq_relationship.bias": (2,),
        "cls.predictions.bias": (10,),
        "cls.predictions.transform.dense.weight": (8, 8),
        "cls.predictions.transform.dense.bias": (8,),
        "cls.predictions.transform.LayerNorm.weight": (8,),
        "cls.predictions.transform.LayerNorm.bias": (8,),
    }
    named |= {n: rng.standard_normal(s).astype(np.float32) for n, s in heads.items()}
    named["cls.predictions.decoder.weight"] = named["bert.embeddings.word_embeddings.weight"].copy()
    config = CONFIG | {"architectures": ["BertForSequenceClassification"]}
    imported = hugging_face.import_hf(
        write_hf_folder(tmp_path / "hf", named, config), tmp_path / "out"
    )
    assert imported.ignored == ("cls.predictions.decoder.weight",)
    variables = _read(imported.checkpoint)
    for google, hf in {
        "output_weights": "classifier.weight",
        "output_bias": "classifier.bias",
        "cls/squad/output_weights": "qa_outputs.weight",
        "cls/squad/output_bias": "qa_outputs.bias",
        "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
        "cls/predictions/output_bias": "cls.predictions.bias",
        "bert/embeddings/LayerNorm/gamma": "bert.embeddings.LayerNorm.gamma",
    }.items():
        np.testing.assert_array_equal(variables[google], named[hf])

    # An untied decoder would be lost: refused. A classifier of tokens is another head: refused.
    named["cls.predictions.decoder.weight"] += 1
    with pytest.raises(ValueError, match="unknown: cls.predictions.decoder.weight"):
        hf_conversion.convert_tensors(named, hf_conversion.convert_config(CONFIG))
    with pytest.raises(ValueError, match="unknown: classifier.weight"):
        hf_conversion.convert_tensors(
            named,
            hf_conversion.convert_config(CONFIG),
            architectures=["BertForTokenClassification"],
        )


def test_half_precision_shards_and_tokenizer_json(tmp_path, tensors):
    hf = write_hf_folder(tmp_path / "hf", {})
    (hf / "model.safetensors").unlink()
    (hf / "vocab.txt").unlink()
    vocab = {token: i for i, token in enumerate(VOCAB)}
    (hf / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": vocab}}))
    names = sorted(tensors)
    bfloat16 = tf.bfloat16.as_numpy_dtype
    parts = {
        "a.safetensors": {n: tensors[n].astype(np.float16) for n in names[:9]},
        "b.safetensors": {n: tensors[n].astype(bfloat16) for n in names[9:]},
    }
    for file, part in parts.items():
        safetensors.numpy.save_file(part, hf / file)
    weight_map = {n: file for file, part in parts.items() for n in part}
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    imported = hugging_face.import_hf(hf, tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_text().split() == VOCAB
    variables = _read(imported.checkpoint)
    assert {v.dtype for v in variables.values()} == {np.dtype(np.float32)}
    name = "embeddings.position_embeddings.weight"
    expected = next(p[name] for p in parts.values() if name in p).astype(np.float32)
    np.testing.assert_array_equal(variables["bert/embeddings/position_embeddings"], expected)


def test_pytorch_model_bin(tmp_path, tensors):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin is read by torch")
    hf = write_hf_folder(tmp_path / "hf", tensors)
    (hf / "model.safetensors").unlink()
    torch.save({n: torch.from_numpy(v) for n, v in tensors.items()}, hf / "pytorch_model.bin")
    imported = hugging_face.import_hf(hf, tmp_path / "out")
    np.testing.assert_array_equal(
        _read(imported.checkpoint)["bert/pooler/dense/kernel"], tensors["pooler.dense.weight"].T
    )


def test_missing_and_damaged_files(tmp_path, tensors):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        hugging_face.import_hf(tmp_path / "none", tmp_path / "out")
    hf = write_hf_folder(tmp_path / "hf", tensors)
    (hf / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        hugging_face.import_hf(hf, tmp_path / "out")
    (hf / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        hugging_face.import_hf(hf, tmp_path / "out")
    write_hf_folder(hf, tensors, vocab=[*VOCAB, "one too many"])
    with pytest.raises(ValueError, match="has 11 entries, expected at most vocab_size 10"):
        hugging_face.import_hf(hf, tmp_path / "out")
    shutil.copy(hf / "config.json", hf / "vocab.txt")
    (hf / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        hugging_face.import_hf(hf, tmp_path / "out")


# ---- MiniLM: the TensorFlow graph of the imported checkpoint against NumPy on the HF tensors ----

SENTENCES = """The cat sat on the mat and looked out of the window.
A quick brown fox jumps over the lazy dog near the river bank.
Quarterly profit rose 12 percent, the company said on Tuesday.
Rain is expected in the north; the south stays dry until Friday evening.
He plays the violin, she conducts an orchestra of ninety musicians in Vienna.
Why?
The treaty of 1648 ended a war that had lasted for thirty years and laid waste to whole regions.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.
Please restart the server after the update, then check the logs for errors.
Two trains leave the station at noon, one at 80 km/h and the other at 120 km/h.""".splitlines()


def _erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _numpy_bert(weights, config, ids, segments):
    """Transformers' BertModel on one unpadded sequence, in float64; returns [S,H]."""
    w = {n: v.astype(np.float64) for n, v in weights.items() if v.dtype.kind == "f"}
    heads = config["num_attention_heads"]
    size = config["hidden_size"] // heads

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.token_type_embeddings.weight"][segments]
    x = norm(x + w["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{p}").reshape(-1, heads, size).swapaxes(0, 1)
            for p in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(size))
        context = scores / scores.sum(-1, keepdims=True) @ v
        context = context.swapaxes(0, 1).reshape(len(ids), -1)
        attention = linear(context, f"{layer}.attention.output.dense")
        x = norm(x + attention, f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    try:
        folder = hf_weights.packaged_minilm()
    except FileNotFoundError as error:
        pytest.skip(f"acceptance data not found: {error}")
    return folder, hugging_face.import_hf(folder, tmp_path_factory.mktemp("minilm"))


@pytest.mark.parametrize("use_tensorflow", [True, False], ids=["tensorflow", "op"])
def test_minilm_gives_the_hidden_states_of_numpy(minilm, use_tensorflow):

    from fastertransformer_tf import google_bert
    from fastertransformer_tf.models import bert_compat, modeling

    folder, imported = minilm
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    tokenizer = google_bert.tokenization().FullTokenizer(imported.vocab_file, True)
    tokens = [tokenizer.tokenize(s) for s in SENTENCES]
    pairs = [(["[CLS]", *a, "[SEP]"], [*b, "[SEP]"]) for a in tokens for b in tokens]
    assert len(pairs) == 100
    bert_config = bert_compat.modeling().BertConfig.from_json_file(imported.config_file)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        holders = [tf.compat.v1.placeholder(tf.int32, [1, None]) for _ in range(3)]
        options = modeling.EncoderOptions(use_tensorflow=use_tensorflow)
        with (
            modeling.encoder_options(options),
            restoring.restored_variables(imported.checkpoint, "float32") as restored,
        ):
            model = bert_compat.modeling().BertModel(
                bert_config, False, holders[0], holders[1], holders[2]
            )
        output = model.get_sequence_output()
        restored.load(session)
        for first, second in pairs:
            ids = tokenizer.convert_tokens_to_ids(first + second)
            segments = [0] * len(first) + [1] * len(second)
            feed = dict(zip(holders, ([ids], [[1] * len(ids)], [segments]), strict=True))
            expected = _numpy_bert(weights, config, np.array(ids), np.array(segments))
            np.testing.assert_allclose(session.run(output, feed)[0], expected, rtol=0, atol=1e-5)
