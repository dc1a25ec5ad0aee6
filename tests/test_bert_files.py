"""bert_config, vocabulary, text_files: what a model's files must hold, and the sentence if not."""

from __future__ import annotations

import json
import math
import pathlib
import re
import threading

import pytest
from absl import flags
from tiny_bert import CONFIG, make_tiny_bert

from fastertransformer_tf import google_bert
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config, text_files, vocabulary
from fastertransformer_tf.models import bert_compat, modeling
from fastertransformer_tf.programs import checked_inputs

INTS = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
]
FLOATS = ["hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"]


@pytest.mark.parametrize("key", INTS)
@pytest.mark.parametrize(
    "value", [0, -1, 2.5, 32.0, "32", True, None, [32], {}, 2**31, 10**400, math.nan, math.inf]
)
def test_a_wrong_size_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(
        UserError, match=rf"^x.json: {key} is .*, expected a whole number from 1 to"
    ):
        bert_config.check(CONFIG | {key: value}, "x.json")


@pytest.mark.parametrize("key", [*FLOATS, "layer_norm_eps"])
@pytest.mark.parametrize("value", [-0.1, 1.5, "0.1", True, None, [], math.nan, -math.inf, 10**400])
def test_a_wrong_number_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(
        UserError, match=rf"^x.json: {key} is .*, expected a number (from|above) 0 to"
    ):
        bert_config.check(CONFIG | {key: value}, "x.json")


@pytest.mark.parametrize("value", ["gelu_new", "", None, 3, ["gelu"], True])
def test_another_activation_is_refused(value: object) -> None:
    with pytest.raises(
        UserError, match="hidden_act is .*, expected one of gelu, gelu_erf, relu, ta"
    ):
        bert_config.check(CONFIG | {"hidden_act": value}, "x.json")


@pytest.mark.parametrize("key", [*INTS, "hidden_act"])
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in CONFIG.items() if name != key}
    with pytest.raises(UserError, match=f"^x.json has no {key}, expected"):
        bert_config.check(config, "x.json")


def test_what_is_returned() -> None:
    config = {name: value for name, value in CONFIG.items() if name not in FLOATS}
    checked = bert_config.check(config | {"hidden_act": "GELU", "directionality": "bidi"}, "x")
    assert checked == CONFIG  # With google's defaults.
    assert bert_config.check(CONFIG | {"layer_norm_eps": 1e-5}, "x")["layer_norm_eps"] == 1e-5
    google = vars(bert_compat.modeling().BertConfig(vocab_size=5))
    assert set(google) == set(CONFIG)
    for key in FLOATS:
        assert checked[key] == google[key]


def test_sizes_that_do_not_go_together() -> None:
    with pytest.raises(
        UserError, match="hidden_size is 32, expected a multiple of num_attention_h"
    ):
        bert_config.check(CONFIG | {"num_attention_heads": 5}, "x")
    shapes = {"bert/embeddings/word_embeddings": [64, 32]}
    bert_config.check_embeddings(CONFIG, shapes, "x", "y")
    with pytest.raises(UserError, match=r"by vocab_size .* is \[65, 32\], in the checkpoint \[64"):
        bert_config.check_embeddings(CONFIG | {"vocab_size": 65}, shapes, "x", "y")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[1]", "holds [1], expected a JSON object"),
        (b"null", "holds null, expected"),
        (b'{"a": 1, "a": 2}', "an object has the key 'a' twice"),
        (b"\xff{}", "line 1: the byte 0xff is not UTF-8"),
        ("{}".encode("utf-16"), "is not UTF-8"),
        (b"[" * 200000, "is not JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", ""),
        (b'{"vocab_size": NaN}', "vocab_size is NaN"),
    ],
)
def test_a_config_file_that_is_none(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    file = tmp_path / "bert_config.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        bert_config.load(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_with_a_byte_order_mark(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "bert_config.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())
    assert bert_config.load(file) == CONFIG


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[PAD]\na\nb\n", {"[PAD]": 0, "a": 1, "b": 2}),
        (b"[PAD]\n\n\nb\n", {"[PAD]": 0, "": 2, "b": 3}),  # Blank lines count.
        (b"a\na\nb", {"a": 1, "b": 2}),  # The last of two gives the id.
        (b"a\r\nb\r\n", {"a": 0, "b": 1}),
        ("\u2028\n\u2029\nhello\n".encode(), {"": 1, "hello": 2}),
        ("a\u2028b\nc\x0bd\ne\x85\n".encode(), {"a\u2028b": 0, "c\x0bd": 1, "e": 2}),
        (b"\xef\xbb\xbf[PAD]\n a\t\n", {"[PAD]": 0, "a": 1}),
        (b"", {}),
    ],
)
def test_the_id_is_the_number_of_the_line(
    tmp_path: pathlib.Path, content: bytes, expected: dict[str, int]
) -> None:
    file = tmp_path / "vocab.txt"
    file.write_bytes(content)
    assert vocabulary.load(file) == expected
    tokenizer = google_bert.tokenization().FullTokenizer(str(file), True)
    assert tokenizer.vocab == expected


def test_a_token_after_odd_lines_gets_the_id_of_its_line(tmp_path: pathlib.Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "", "", "\u2028", "the", "the", "cat"]
    (tmp_path / "vocab.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")
    tokenizer = google_bert.tokenization().FullTokenizer(str(tmp_path / "vocab.txt"), True)
    found = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("The cat"))
    assert found == [8, 9]
    assert tokenizer.convert_ids_to_tokens(found) == ["the", "cat"]


def _values(model, **changes: object) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("vocab_file", model.vocab_file, "", flag_values=values)
    flags.DEFINE_bool("do_lower_case", True, "", flag_values=values)
    flags.DEFINE_string("init_checkpoint", None, "", flag_values=values)
    values(["p", *(f"--{name}={value}" for name, value in changes.items())])
    return values


def test_vocabulary_and_model_are_checked_against_each_other(tmp_path: pathlib.Path) -> None:
    model = make_tiny_bert(tmp_path)
    config = checked_inputs.load_config(model.config_file, 16)
    file = tmp_path / "vocab.txt"
    text = file.read_text()
    assert len(checked_inputs.load_tokenizer(_values(model), config).vocab) == 64
    file.write_text(text + "\n\n")  # Blank lines at the end name no token.
    checked_inputs.load_tokenizer(_values(model), config)
    file.write_text(text + "more\n")
    with pytest.raises(
        UserError, match="vocab.txt has 65 tokens, expected at most .*vocab_size, 64"
    ):
        checked_inputs.load_tokenizer(_values(model), config)
    for token in vocabulary.SPECIAL_TOKENS:
        file.write_text(text.replace(token, "x"))
        with pytest.raises(
            UserError, match=re.escape(f"vocab.txt has no {token}, expected a BERT")
        ):
            checked_inputs.load_tokenizer(_values(model), config)
    for content in (b"", b"\n", b"\0\0"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="has no .PAD., .UNK., .CLS., .SEP."):
            checked_inputs.load_tokenizer(_values(model), config)
    file.write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(UserError, match="vocab.txt, line 2: the byte 0xff is not UTF-8"):
        checked_inputs.load_tokenizer(_values(model), config)


def test_the_case_that_googles_names_tell(tmp_path: pathlib.Path) -> None:
    model = make_tiny_bert(tmp_path)
    config = checked_inputs.load_config(model.config_file, 16)
    path = "/m/cased_L-12_H-768_A-12/bert_model.ckpt"
    with pytest.raises(UserError, match="--do_lower_case=true does not go with .* needs false"):
        checked_inputs.load_tokenizer(_values(model, init_checkpoint=path), config)


def test_the_ops_activations(tmp_path: pathlib.Path) -> None:
    model = make_tiny_bert(tmp_path, hidden_act="tanh")
    options = modeling.EncoderOptions()
    with pytest.raises(UserError, match="hidden_act is 'tanh', expected gelu, gelu_erf or relu"):
        checked_inputs.load_config(model.config_file, 16, options)
    checked_inputs.load_config(model.config_file, 16, modeling.EncoderOptions(use_tensorflow=True))


def test_flags_are_bound_in_one_thread_only() -> None:
    module = google_bert.run_squad()
    seen = {}

    def bind(value: bool, wait: threading.Barrier) -> None:
        values = flags.FlagValues()
        flags.DEFINE_bool("version_2_with_negative", value, "", flag_values=values)
        values.mark_as_parsed()
        with google_bert.bound_flags(values):
            wait.wait(10)
            seen[value] = module.FLAGS.version_2_with_negative
            wait.wait(10)

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=bind, args=(value, barrier)) for value in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {False: False, True: True}
    assert module.FLAGS.version_2_with_negative is False


def test_long_values_are_cut_in_messages() -> None:
    assert len(text_files.describe("x" * 1000)) == 60
