"""squad and run_squad_wrap: padding never takes part, SQuAD 2, files, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastertransformer_tf import bert_compat, squad

VOCAB = "[PAD] [UNK] [CLS] [SEP] who won the race ? anna after bob fell . in 1987".split()
OPTIONS = {"max_seq_length": 24, "max_query_length": 8, "doc_stride": 4}


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("".join(f"{w}\n" for w in VOCAB))
    return bert_compat.tokenization().FullTokenizer(str(tmp_path / "vocab.txt"), True)


@pytest.fixture
def dataset(tmp_path):
    qas = [
        {
            "id": "q1",
            "question": "Who won the race?",
            "answers": [{"text": "Anna", "answer_start": 0}],
            "is_impossible": False,
        }
    ]
    paragraph = {"context": "Anna won the race in 1987.", "qas": qas}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": [paragraph]}]}))
    return path


def _logits(data, **positions):
    """Logits that are -5 but 5 where a word of the window is named, and 99 in the padding."""
    result = []
    for part in ("start", "end"):
        logits = np.full(data.arrays["input_ids"].shape, -5, np.float32)
        for row, feature in enumerate(data.features):
            logits[row, positions[part]] = 5
            logits[row, len(feature.tokens) :] = 99
        result.append(logits)
    return result


def test_logits_of_padding_never_take_part(tmp_path, tokenizer, dataset):
    options = squad.SquadOptions(**OPTIONS, n_best_size=3)
    data = squad.load(dataset, tokenizer, options, is_training=False)
    tokens = data.features[0].tokens
    assert len(tokens) < 24
    year = tokens.index("1987")
    start, end = _logits(data, start=year - 1, end=year)
    answers = squad.write_predictions(data, start, end, options, tmp_path / "out")
    assert answers == {"q1": "in 1987."} or answers == {"q1": "in 1987"}
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == answers
    nbest = json.loads((tmp_path / "out" / "nbest_predictions.json").read_text())["q1"]
    assert 1 <= len(nbest) <= 3
    assert sum(entry["probability"] for entry in nbest) == pytest.approx(1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "nbest_predictions.json",
        "predictions.json",
    ]
    # Unlike with all logits, where the three best are padding and no span is found.
    everything = [
        bert_compat.run_squad().RawResult(f.unique_id, list(map(float, s)), list(map(float, e)))
        for f, s, e in zip(data.features, start, end, strict=True)
    ]
    with squad._module_flags(options):
        bert_compat.run_squad().write_predictions(
            data.examples,
            data.features,
            everything,
            3,
            30,
            True,
            *(str(tmp_path / n) for n in ("a", "b", "c")),
        )
    assert json.loads((tmp_path / "a").read_text()) == {"q1": "empty"}


def test_squad_2_null_odds_and_no_span_among_the_best(tmp_path, tokenizer, dataset):
    options = squad.SquadOptions(**OPTIONS, n_best_size=1, version_2_with_negative=True)
    data = squad.load(dataset, tokenizer, options, is_training=False)
    # The one best start and end are [CLS]: run_squad alone ends in an AttributeError here.
    start, end = _logits(data, start=0, end=0)
    assert squad.write_predictions(data, start, end, options, tmp_path / "out") == {"q1": ""}
    odds = json.loads((tmp_path / "out" / "null_odds.json").read_text())
    assert odds == {"q1": 20.0}
    year = data.features[0].tokens.index("1987")
    start, end = _logits(data, start=year, end=year)
    answers = squad.write_predictions(data, start, end, options, tmp_path / "out")
    assert answers["q1"].startswith("1987")
    assert json.loads((tmp_path / "out" / "null_odds.json").read_text()) == {"q1": -20.0}


def test_training_features(tokenizer, dataset):
    data = squad.load(dataset, tokenizer, squad.SquadOptions(**OPTIONS), is_training=True)
    row, start = data.arrays["input_ids"][0], data.arrays["start_positions"][0]
    assert VOCAB[row[start]] == "anna"
    assert data.arrays["end_positions"][0] == start


def test_refusals(tmp_path, tokenizer, dataset):
    with pytest.raises(ValueError, match="max_seq_length is 10, expected more than"):
        squad.SquadOptions(max_seq_length=10, max_query_length=8)
    with pytest.raises(ValueError, match="doc_stride is 0"):
        squad.SquadOptions(doc_stride=0)
    options = squad.SquadOptions(**OPTIONS)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        squad.load(tmp_path / "none", tokenizer, options, is_training=False)
    (tmp_path / "bad.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="is not a SQuAD file"):
        squad.load(tmp_path / "bad.json", tokenizer, options, is_training=False)
    data = squad.load(dataset, tokenizer, options, is_training=False)
    with pytest.raises(ValueError, match=r"start_logits is \[1, 3\], expected \[1, 24\]"):
        squad.write_predictions(data, np.zeros((1, 3)), np.zeros((1, 24)), options, tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        squad.write_predictions(
            data, np.full((1, 24), np.nan), np.zeros((1, 24)), options, tmp_path
        )


DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def _program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fastertransformer_tf.run_squad_wrap", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_program_says_what_is_wrong(tmp_path):
    shown = _program("--help")
    assert shown.returncode == 0
    for name in ("predict_file", "doc_stride", "floatx", "remove_padding", "n_best_size"):
        assert f"--{name}" in shown.stdout
    failed = _program("--do_predict", f"--output_dir={tmp_path}")
    assert failed.returncode == 1
    assert "required flags are missing: --vocab_file, --bert_config_file" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_the_op_answers_as_tensorflow_does(tmp_path):
    articles = json.loads((DATA / "squad/eval-v1.1.json").read_text())["data"]
    paragraph = articles[0]["paragraphs"][0]
    few = [{"title": "few", "paragraphs": [paragraph | {"qas": paragraph["qas"][:4]}]}]
    (tmp_path / "few.json").write_text(json.dumps({"version": "1.1", "data": few}))
    common = [
        f"--vocab_file={DATA}/minilm_squad/vocab.txt",
        f"--bert_config_file={DATA}/minilm_squad/bert_config.json",
        f"--init_checkpoint={DATA}/minilm_squad/model.ckpt",
        f"--predict_file={tmp_path}/few.json",
        "--do_predict",
        "--predict_batch_size=2",
    ]
    answers = {}
    for name, extra in {
        "tf": ["--use_tensorflow_transformer"],
        "op": [],
        "packed": ["--remove_padding"],
    }.items():
        done = _program(*common, f"--output_dir={tmp_path}/{name}", *extra)
        assert done.returncode == 0, done.stderr
        answers[name] = json.loads((tmp_path / name / "nbest_predictions.json").read_text())
    for name in ("op", "packed"):
        for question, expected in answers["tf"].items():
            assert answers[name][question][0]["text"] == expected[0]["text"]
            logit = answers[name][question][0]["start_logit"]
            assert logit == pytest.approx(expected[0]["start_logit"], abs=1e-3)
