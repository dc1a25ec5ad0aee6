"""Hugging Face folders whose tokenizer, configuration or weights google's code cannot take."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy
from tiny_hf import CONFIG, random_tensors, write_hf_folder

from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import hugging_face
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import hf_conversion

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*MARKS, "cafe", "café", "CAFE", "##s", "北"]
NORMALIZER = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
TOKENIZER = {
    "added_tokens": [{"id": i, "content": mark, "special": True} for i, mark in enumerate(MARKS)],
    "normalizer": NORMALIZER,
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "special_tokens": {"[CLS]": {"id": "[CLS]"}, "[SEP]": {"id": "[SEP]"}},
    },
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {token: i for i, token in enumerate(WORDS)},
    },
}


@pytest.fixture
def hf(tmp_path):
    """A whole model with the vocabulary WORDS in both files."""
    folder = write_hf_folder(tmp_path / "hf", random_tensors(np.random.default_rng(5)), vocab=WORDS)
    write(folder, "tokenizer.json", TOKENIZER)
    return folder


def write(folder: pathlib.Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def changed(path: str, value: object) -> dict:
    """TOKENIZER with another value at a path such as "model.unk_token"."""
    tokenizer = json.loads(json.dumps(TOKENIZER))
    *parts, last = path.split(".")
    place = tokenizer
    for part in parts:
        place = place[part]
    place[last] = value
    return tokenizer


def refusal(folder: pathlib.Path, output: pathlib.Path, **options: str) -> str:
    """What import_hf says; checks that it is one line and that nothing is written."""
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        hugging_face.import_hf(folder, output, **options)
    assert not output.exists()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500
    return message


# ---- Tokenizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strip_accents": False}, "strip_accents is False, expected True or null"),
        ({"do_lower_case": False, "strip_accents": True}, "strip_accents is True, expected False"),
        ({"do_lower_case": 1}, "do_lower_case is 1, expected true or false"),
        ({"strip_accents": "no"}, "strip_accents is 'no', expected true or false or null"),
        ({"tokenize_chinese_chars": False}, "tokenize_chinese_chars is False, expected true"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize is False, expected true"),
        ({"never_split": ["C++"]}, "never_split is ['C++'], expected null"),
        (
            {"tokenizer_class": "BertJapaneseTokenizer"},
            "tokenizer_class is 'BertJapaneseTokenizer'",
        ),
        ({"unk_token": "<unk>"}, "unk_token is '<unk>', expected '[UNK]'"),
        ({"cls_token": {"content": "<s>"}}, "cls_token is '<s>', expected '[CLS]'"),
    ],
)
def test_settings_that_google_has_not_are_refused(hf, tmp_path, settings, message):
    (hf / "tokenizer.json").unlink()
    write(hf, "tokenizer_config.json", settings)
    said = refusal(hf, tmp_path / "out")
    assert str(hf / "tokenizer_config.json") in said
    assert message in said


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("normalizer", None, "normalizer is None, expected an object"),
        ("normalizer.type", "Sequence", "normalizer is 'Sequence', expected 'BertNormalizer'"),
        ("normalizer.clean_text", False, "normalizer clean_text is False, expected true"),
        ("normalizer.handle_chinese_chars", False, "handle_chinese_chars is False, expected true"),
        ("normalizer.strip_accents", False, "strip_accents is False, expected True or null"),
        ("normalizer.lowercase", "yes", "lowercase is 'yes', expected true or false"),
        ("pre_tokenizer", None, "pre_tokenizer is None, expected an object"),
        ("pre_tokenizer.type", "Whitespace", "pre_tokenizer is 'Whitespace', expected 'BertPre"),
        ("post_processor.special_tokens", {"<s>": {}}, "special_tokens is ['<s>'], expected [CLS]"),
        ("model.type", "BPE", "model type is 'BPE', expected 'WordPiece'"),
        ("model.unk_token", "<unk>", "model unk_token is '<unk>', expected '[UNK]'"),
        ("model.continuing_subword_prefix", "@@", "continuing_subword_prefix is '@@'"),
        ("model.max_input_chars_per_word", 20, "max_input_chars_per_word is 20, expected 100 to"),
        ("model.vocab", ["a"], "model vocab is ['a'], expected tokens and their ids"),
        ("model.vocab", {"a": True}, "model vocab is {'a': True}, expected tokens"),
        ("model.vocab.cafe", 9, "the id of 'cafe' is 5 and 9, expected the same"),
        ("added_tokens", "x", "added_tokens is 'x', expected a list of objects"),
        ("added_tokens", [{"id": "5", "content": "cafe"}], "added token 'cafe' has the id '5'"),
    ],
)
def test_what_tokenizer_json_says_is_followed_or_refused(hf, tmp_path, path, value, message):
    write(hf, "tokenizer.json", changed(path, value))
    said = refusal(hf, tmp_path / "out")
    assert message in said and "tokenizer.json" in said


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "both"])
def test_the_case_is_the_model_s(hf, tmp_path, lower, file):
    write(hf, "tokenizer.json", changed("normalizer.lowercase", lower))
    if file != "tokenizer.json":
        write(hf, "tokenizer_config.json", {"do_lower_case": lower, "strip_accents": lower})
    if file == "tokenizer_config.json":
        (hf / "tokenizer.json").unlink()
    imported = hugging_face.import_hf(hf, tmp_path / "out")
    assert imported.do_lower_case is lower
    tokenizer = google_bert.tokenization().FullTokenizer(imported.vocab_file, lower)
    assert tokenizer.tokenize("CAFE cafes") == (
        ["cafe", "cafe", "##s"] if lower else ["CAFE", "cafe", "##s"]
    )


@pytest.mark.parametrize(
    ("settings", "normalizer", "message"),
    [
        ({"do_lower_case": True}, {"lowercase": False}, "do_lower_case is True, but"),
        ({"do_lower_case": False}, {"lowercase": True}, "do_lower_case is False, but"),
        ({"strip_accents": True}, {"strip_accents": False}, "strip_accents is True, but"),
        ({"strip_accents": False}, {"strip_accents": None}, "strip_accents is False, but"),
    ],
)
def test_files_that_contradict_each_other_are_named(hf, tmp_path, settings, normalizer, message):
    write(hf, "tokenizer_config.json", settings)
    write(hf, "tokenizer.json", changed("normalizer", NORMALIZER | normalizer))
    said = refusal(hf, tmp_path / "out")
    assert message in said
    assert "tokenizer_config.json" in said and "tokenizer.json" in said


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("token", "number"), [("[NEW]", 10), ("café", 6)])
def test_added_tokens_are_refused_by_name_or_kept(hf, tmp_path, file, token, number):
    config = CONFIG | {"vocab_size": 12}
    hf = write_hf_folder(
        tmp_path / "hf", random_tensors(np.random.default_rng(5), config), config, vocab=WORDS
    )
    if file == "added_tokens.json":
        write(hf, file, {token: number})
    elif file == "tokenizer.json":
        entries = [*TOKENIZER["added_tokens"], {"id": number, "content": token}]
        write(hf, file, changed("added_tokens", entries))
    else:
        write(hf, file, {"added_tokens_decoder": {str(number): {"content": token}}})
    assert f"1 added tokens, which google's tokenizer cannot cut out of a text: {token!r} (id " in (
        refusal(hf, tmp_path / "out")
    )
    imported = hugging_face.import_hf(hf, tmp_path / "out", added_tokens="keep")
    vocab = pathlib.Path(imported.vocab_file).read_text(encoding="utf-8").splitlines()
    assert vocab[number] == token
    assert vocab[:10] == WORDS


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"[NEW]": 11}, "has the id 11, expected a new token of one line with the id 10"),
        ({"cafe": 10}, "'cafe' has the id 10, expected a new token"),
        ({"[NEW]": 5}, "'[NEW]' has the id 5, expected 'cafe'"),
        ({"[UNK]": 0}, "added token 0 is '[UNK]', but"),
        ({"a\nb": 10}, "expected a new token of one line"),
    ],
)
def test_added_tokens_that_do_not_fit_are_refused(hf, tmp_path, added, message):
    write(hf, "added_tokens.json", added)
    assert message in refusal(hf, tmp_path / "out", added_tokens="keep")


@pytest.mark.parametrize("number", ["-1", "x", "1" * 5000, ""])
def test_ids_that_are_no_numbers_are_refused(hf, tmp_path, number):
    decoder = {number: {"content": "[NEW]"}}
    write(hf, "tokenizer_config.json", {"added_tokens_decoder": decoder})
    assert "added token '[NEW]' has the id '" in refusal(hf, tmp_path / "out")


def test_a_pooler_in_part_is_not_taken_for_none(hf, tmp_path):
    tensors = random_tensors(np.random.default_rng(5))
    del tensors["pooler.dense.weight"]
    safetensors.numpy.save_file(tensors, hf / "model.safetensors")
    said = refusal(hf, tmp_path / "out", missing_pooler="zeros")
    assert "missing: pooler.dense.weight [8, 8]" in said


def test_vocabularies(hf, tmp_path):
    # Blank and repeated lines keep their numbers.
    (hf / "tokenizer.json").unlink()
    lines = ["[PAD]", "", "\u2028", "a", "a", "b"]
    (hf / "vocab.txt").write_bytes("".join(f"{line}\r\n" for line in lines).encode("utf-8-sig"))
    imported = hugging_face.import_hf(hf, tmp_path / "out")
    written = pathlib.Path(imported.vocab_file).read_bytes().decode()
    assert written.split("\n") == [*lines, ""]
    shutil.rmtree(tmp_path / "out")
    (hf / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    assert "vocab.txt, line 2: the byte 0xff is not UTF-8" in refusal(hf, tmp_path / "out")
    (hf / "vocab.txt").write_bytes(b"")
    assert "vocab.txt is empty" in refusal(hf, tmp_path / "out")
    (hf / "vocab.txt").unlink()
    assert "holds neither vocab.txt nor tokenizer.json" in refusal(hf, tmp_path / "out")
    write(hf, "tokenizer.json", changed("model.vocab", {"a": 0, "b": 2}))
    assert "expected the ids 0 ... 1, each once" in refusal(hf, tmp_path / "out")
    write(hf, "tokenizer.json", changed("model.vocab", {"a": 0, "b\nc": 1}))
    assert "'b\\nc' cannot be a line of vocab.txt" in refusal(hf, tmp_path / "out")
    write(hf, "tokenizer.json", changed("model.vocab", {"a": 0, "\ud800": 1}))
    assert "cannot be a line of vocab.txt" in refusal(hf, tmp_path / "out")


# ---- JSON and configuration ----------------------------------------------------------------------

JSON_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"]


@pytest.mark.parametrize("name", [*JSON_FILES, "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON that can be read"),
        (b'{\n"a": ,\n}', "is not JSON that can be read: Expecting value: line 2"),
        (b'{"a": 1, "a": 2}', "an object has the key 'a' twice"),
        (b"[1]", "holds a JSON list, expected an object"),
        (b"null", "holds a JSON NoneType, expected an object"),
        (b'{"a": "\xff"}', "line 1: the byte 0xff is not UTF-8"),
        (b"[" * 100000, "not JSON that can be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
    ],
)
def test_files_that_hold_no_json_object(hf, tmp_path, name, content, message):
    (hf / name).write_bytes(content)
    said = refusal(hf, tmp_path / "out")
    if sys.version_info >= (3, 10, 7) or b"999" not in content:
        assert message in said
    assert str(hf / name) in said


def test_a_byte_order_mark_is_no_fault(hf, tmp_path):
    write(hf, "tokenizer_config.json", {"do_lower_case": True})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (hf / name).write_bytes(b"\xef\xbb\xbf" + (hf / name).read_bytes())
    assert hugging_face.import_hf(hf, tmp_path / "out").do_lower_case


SIZES = [key for key in CONFIG if key.endswith(("_size", "_layers", "_heads", "_embeddings"))]
BAD_SIZES = [True, "8", 8.0, -1, 0, None, [8], {}, 2**31, float("nan"), float("inf")]
BAD_NUMBERS = [True, "0.1", -0.1, None, [0.1], {}, 2.0, float("nan"), float("inf")]


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key in SIZES for value in BAD_SIZES]
    + [
        (key, value)
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
        for value in BAD_NUMBERS
    ]
    + [("layer_norm_eps", value) for value in [*BAD_NUMBERS, 0, 0.0]]
    + [("hidden_act", value) for value in (None, 1, ["gelu"], {}, "GELU")]
    + [("architectures", value) for value in ("BertModel", [1], {}, True)]
    + [("is_decoder", value) for value in (True, "false", 0, [])]
    + [("model_type", value) for value in (1, ["bert"], "BERT")]
    + [("problem_type", value) for value in ("regression", "multi_label_classification")],
)  # fmt: skip
def test_wrong_values_in_config_json(key, value):
    with pytest.raises(UserError, match=f"config.json: {key} is .*, expected ") as caught:
        hf_conversion.convert_config(CONFIG | {key: value})
    assert "\n" not in str(caught.value)


def test_a_url_is_no_folder(hf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/out is a URL"):
        hugging_face.import_hf(hf, "gs://bucket/out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_more_layers_than_tensors(hf, tmp_path):
    write(hf, "config.json", CONFIG | {"num_hidden_layers": 1000})
    assert "expected 16 for each of the 1000 num_hidden_layers" in refusal(hf, tmp_path / "out")


# ---- Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_no_float32_numbers_are_refused_by_name(hf, tmp_path, value):
    tensors = random_tensors(np.random.default_rng(5))
    name = "encoder.layer.1.output.dense.bias"
    tensors[name] = tensors[name].astype(np.float64)
    tensors[name][3] = value
    safetensors.numpy.save_file(tensors, hf / "model.safetensors")
    said = refusal(hf, tmp_path / "out")
    assert f"not finite: {name} has 1 values" in said


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is None, expected tensor names"),
        ({}, "weight_map is {}, expected tensor names"),
        (["a.safetensors"], "weight_map is ['a.safetensors']"),
        ({"a": 1}, "the file of 'a' is 1, expected the name of a file beside it"),
        ({"a": "../model.safetensors"}, "is '../model.safetensors', expected the name"),
        ({"a": "/etc/passwd"}, "is '/etc/passwd', expected the name"),
        ({"a": "sub/model.safetensors"}, "expected the name of a file beside it"),
        ({"a": ".."}, "is '..', expected the name"),
        ({"a": "part\0"}, "expected the name of a file beside it"),
        ({"a": "none.safetensors"}, "none.safetensors does not exist"),
        ({"a": "part.safetensors"}, "contradict each other about 'a'"),
    ],
)
def test_indices(hf, tmp_path, weight_map, message):
    (hf / "model.safetensors").rename(hf / "part.safetensors")
    write(hf, "model.safetensors.index.json", {"weight_map": weight_map})
    assert message in refusal(hf, tmp_path / "out")


def test_an_index_that_is_right_or_lacks_a_tensor(hf, tmp_path):
    names = sorted(random_tensors(np.random.default_rng(5)))
    (hf / "model.safetensors").rename(hf / "part.safetensors")
    weight_map = dict.fromkeys(names, "part.safetensors")
    write(hf, "model.safetensors.index.json", {"weight_map": weight_map})
    assert hugging_face.import_hf(hf, tmp_path / "out").num_variables == len(names)
    shutil.rmtree(tmp_path / "out")
    del weight_map[names[0]]
    write(hf, "model.safetensors.index.json", {"weight_map": weight_map})
    assert f"contradict each other about {names[0]!r}" in refusal(hf, tmp_path / "out")


def test_pytorch_files_that_hold_something_else(hf, tmp_path):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin is read by torch")
    (hf / "model.safetensors").unlink()
    file = hf / "pytorch_model.bin"
    state = {
        name: torch.from_numpy(value)
        for name, value in random_tensors(np.random.default_rng(5)).items()
    }
    name = next(iter(state))
    for content, message in (
        ({"state_dict": state}, "'state_dict' holds 39 entries of its own, expected a tensor"),
        ({"epoch": 3, **state}, "'epoch' is a int, expected tensors by name"),
        ([1, 2], "holds a list, expected tensors by name"),
        (state | {1: state[name]}, "1 is a Tensor, expected tensors by name"),
        (state | {name: state[name].to_sparse()}, f"{name} is no plain tensor"),
        (state | {name: state[name].to(torch.complex64)}, f"wrong type: {name} is complex64"),
        (state | {name: state[name] * torch.nan}, f"not finite: {name} has 80 values"),
        (torch.nn.Linear(2, 2), "cannot be read: Weights only load failed"),
    ):
        torch.save(content, file)
        said = refusal(hf, tmp_path / "out")
        assert message in said, said
        assert name in said or str(file) in said
    torch.save({n: t.to(torch.bfloat16) for n, t in state.items()}, file)
    whole = file.read_bytes()
    assert hugging_face.import_hf(hf, tmp_path / "out").num_variables == len(state)
    shutil.rmtree(tmp_path / "out")
    for damaged in (b"", b"\0" * 100, whole[:1000], whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        assert f"{file} cannot be read: " in refusal(hf, tmp_path / "out")


def test_a_model_is_replaced_whole_or_not_at_all(hf, tmp_path, monkeypatch):
    output = tmp_path / "out"
    hugging_face.import_hf(hf, output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    write(hf, "tokenizer.json", changed("model.vocab", {f"new{i}": i for i in range(10)}))
    (hf / "vocab.txt").unlink()
    write(hf, "tokenizer.json", changed("added_tokens", []) | {"model": {
        "type": "WordPiece", "vocab": {f"new{i}": i for i in range(10)}}})  # fmt: skip

    def full(*unused: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(hugging_face.writing, "write_checkpoint", full)
        with pytest.raises(OSError, match="No space left"):
            hugging_face.import_hf(hf, output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]
    hugging_face.import_hf(hf, output)
    assert (output / "vocab.txt").read_text().split() == [f"new{i}" for i in range(10)]
    assert set(before) == {path.name for path in output.iterdir()}
