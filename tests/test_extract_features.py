"""extract_features: google's program's tokens, layers and file, and its errors."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from tiny_bert import TinyBert, make_tiny_bert
from tolerances import assert_close

from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import restoring
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import bert_compat, modeling
from fastertransformer_tf.programs import checked_inputs, feature_extraction

LENGTH = 12
LINES = [
    "the cat sat",
    "a big red dog ||| is on the cat",
    "",
    "  a dog unheard-of ran fast  ",
    "the ||| ",
    "no|||yes ||| it ||| is",
    "the big red dog is on the small blue cat and ran fast",
    "the big red dog is on ||| the small blue cat and ran fast",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def arguments(tiny: TinyBert, tmp_path: pathlib.Path) -> dict[str, object]:
    (tmp_path / "in.txt").write_text("\n".join(LINES) + "\n")
    return {
        "input_file": tmp_path / "in.txt",
        "output_file": tmp_path / "out.jsonl",
        "init_checkpoint": tiny.folder,
        "layers": "-1",
        "max_seq_length": LENGTH,
        "batch_size": 2,  # Eight lines are one sorted part.
    }


def run(**arguments: object) -> list[dict]:
    """Runs the program in this process with its own flags; what it wrote."""
    values = flags.FlagValues()
    feature_extraction.define_flags(values)
    values(["extract_features", *(f"--{k}={v}" for k, v in arguments.items())])
    count = feature_extraction.run(values)
    written = pathlib.Path(str(arguments["output_file"])).read_text().splitlines()
    assert len(written) == count
    return [json.loads(line) for line in written]


def google(tiny: TinyBert, file: str) -> list[tuple[list[str], np.ndarray]]:
    """Tokens and all layers, [T,L,H], of each line, by google's code in TensorFlow's graph."""
    module = google_bert.load("extract_features")
    tokenizer = google_bert.tokenization().FullTokenizer(tiny.vocab_file, True)
    features = module.convert_examples_to_features(module.read_examples(file), LENGTH, tokenizer)
    config = checked_inputs.load_config(tiny.config_file, LENGTH)
    names = {
        "input_ids": "input_ids",
        "input_mask": "input_mask",
        "token_type_ids": "input_type_ids",
    }
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = {
            name: tf.constant([getattr(f, of) for f in features]) for name, of in names.items()
        }
        with (
            modeling.encoder_options(modeling.EncoderOptions(use_tensorflow=True)),
            restoring.restored_variables(tiny.checkpoint, "float32") as restored,
        ):
            model = bert_compat.modeling().BertModel(config, False, **inputs)
        restored.load(session)
        layers = np.stack(session.run(model.get_all_encoder_layers()), axis=2)
    return [(f.tokens, v[: len(f.tokens)]) for f, v in zip(features, layers, strict=True)]


def vectors(line: dict) -> np.ndarray:
    """[T,K,H] of a line."""
    return np.array(
        [[layer["values"] for layer in one["layers"]] for one in line["features"]], np.float32
    )


@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("layers", ["-1,-2,-3", "0,2", "1"])
def test_tokens_and_layers_are_googles(
    tiny: TinyBert, arguments: dict, layers: str, remove_padding: bool
) -> None:
    found = run(**arguments | {"layers": layers, "remove_padding": remove_padding})
    expected = google(tiny, str(arguments["input_file"]))
    chosen = [int(layer) for layer in layers.split(",")]
    assert [line["linex_index"] for line in found] == list(range(len(LINES)))
    for line, (tokens, values) in zip(found, expected, strict=True):
        assert list(line) == ["linex_index", "features"]
        assert [feature["token"] for feature in line["features"]] == tokens
        for feature in line["features"]:
            assert [layer["index"] for layer in feature["layers"]] == chosen
        assert_close(vectors(line), values[:, chosen], "float32")
    assert [f["token"] for f in found[2]["features"]] == ["[CLS]", "[SEP]"]
    assert len(found[6]["features"]) == len(found[7]["features"]) == LENGTH


def test_values_have_six_digits_and_batches_do_not_matter(arguments: dict) -> None:
    found = run(**arguments)
    text = pathlib.Path(arguments["output_file"]).read_text()
    assert max(len(digits) for digits in re.findall(r"\d\.(\d+)[,\]]", text)) == 6
    again = run(**arguments | {"batch_size": 100})
    for one, other in zip(found, again, strict=True):
        assert_close(vectors(one), vectors(other), "float32")


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
def test_other_types(arguments: dict, floatx: str) -> None:
    exact = run(**arguments)
    for one, other in zip(exact, run(**arguments, floatx=floatx), strict=True):
        assert_close(vectors(other), vectors(one), floatx)


@pytest.mark.parametrize("use_tensorflow", [False, True])
def test_one_layer_of_one(tmp_path: pathlib.Path, arguments: dict, use_tensorflow: bool) -> None:
    tiny = make_tiny_bert(tmp_path / "model", num_hidden_layers=1)
    changed = arguments | {"init_checkpoint": tiny.folder, "layers": "0,-1"}
    found = run(**changed, use_tensorflow_transformer=use_tensorflow)
    expected = google(tiny, str(arguments["input_file"]))
    for line, (_, values) in zip(found, expected, strict=True):
        assert_close(vectors(line), values[:, [0, 0]], "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "-1,-4"}, "--layers=-1,-4, expected numbers from -3 to 2 with commas between"),
        ({"layers": "3"}, "--layers=3, expected numbers from -3 to 2"),
        ({"layers": "1,"}, "--layers=1,, expected numbers"),
        ({"layers": "last"}, "--layers=last, expected numbers"),
        ({"input_file": "/none"}, "--input_file=/none not found"),
        ({"input_file": "/dev/null"}, "--input_file=/dev/null has no line"),
        ({"input_file": ""}, "required flags are missing: --input_file"),
        ({"output_file": "gs://b/o"}, "--output_file=gs://b/o is a URL"),
        ({"output_file": "/"}, "--output_file=/ is a folder, expected a file"),
        ({"max_seq_length": 41}, "max_seq_length is 41, expected 3 to 40"),
        ({"max_seq_length": 2}, "max_seq_length is 2, expected 3 to 40"),
        ({"batch_size": 0}, "--batch_size=0, expected at least 1"),
        ({"use_tpu": True}, "--use_tpu=true: there is no TPU support"),
        ({"int8_mode": 2}, "--int8_mode=2 found a float checkpoint"),
        ({"init_checkpoint": ""}, "required flags are missing: --init_checkpoint, --vocab_file"),
    ],
)
def test_mistakes(arguments: dict, changes: dict, message: str) -> None:
    with pytest.raises((UserError, FileNotFoundError), match=re.escape(message)):
        run(**arguments | changes)
    assert not pathlib.Path(arguments["output_file"]).exists()


def test_pairs_need_segments(tmp_path: pathlib.Path, arguments: dict) -> None:
    tiny = make_tiny_bert(tmp_path / "model", type_vocab_size=1)
    with pytest.raises(UserError, match="type_vocab_size is 1, expected at least 2"):
        run(**arguments | {"init_checkpoint": tiny.folder})
    (tmp_path / "in.txt").write_text("the cat")
    assert len(run(**arguments | {"init_checkpoint": tiny.folder})) == 1
