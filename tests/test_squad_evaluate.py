"""squad_evaluate_v1_1: golden answers worked out by hand from the official rules."""

import json
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import squad_scores as squad


@pytest.mark.parametrize(
    ("prediction", "truth", "exact_match", "f1"),
    [
        ("The Cat", "cat", 1, 1),
        ("cat!", "\u201ccat\u201d", 0, 0),  # Only ASCII punctuation is dropped.
        ("an  apple,\ta day", "apple day", 1, 1),
        ("theatre", "the atre", 0, 0),  # An article is a whole word.
        ("U.S.", "us", 1, 1),  # Punctuation goes first and joins what it parted.
        ("re-use", "re use", 0, 0),
        ("a.b", "ab", 1, 1),  # "ab": no article is left once the dot has gone.
        ("\u00c9cole", "\u00e9cole", 1, 1),
        ("\u00e9cole", "ecole", 0, 0),  # Accents stay.
        ("caf\u00e9\u00a0noir", "caf\u00e9 noir", 1, 1),  # No-break space is white space.
        ("\u5317\u4eac", "\u5317\u4eac \u5e02", 0, 2 / 3),
        ("\u2013", "-", 0, 0),
        ("the", "a", 1, 0),  # Nothing is left of both: equal, but no word is shared.
        ("", "word", 0, 0),
        ("in 1914", "1914", 0, 2 / 3),
        ("to be or not to be", "to be", 0, 0.5),
        ("b b", "b", 0, 2 / 3),
        ("one two three four", "three five", 0, 2 * (1 / 4) * (1 / 2) / (1 / 4 + 1 / 2)),
    ],
)
def test_scores(prediction, truth, exact_match, f1):
    assert squad.exact_match_score(prediction, truth) == exact_match
    assert squad.f1_score(prediction, truth) == pytest.approx(f1)


def _article(*questions):
    qas = [{"id": i, "answers": [{"text": t} for t in texts]} for i, texts in questions]
    return {"paragraphs": [{"qas": qas}]}


def test_best_answer_missing_ids_and_means(capsys):
    articles = [
        _article(("q1", ["wrong", "The right", "also wrong"]), ("q2", ["x y", "x z w"])),
        _article(("q3", ["no prediction"]), ("q4", ["answer"])),
    ]
    predictions = {"q1": "right", "q2": "x", "q4": "other", "unknown": "answer"}
    scores = squad.evaluate(articles, predictions)
    assert scores["exact_match"] == 100 * 1 / 4
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3) / 4)
    assert "question q3 has no prediction" in capsys.readouterr().err


def test_bad_data():
    with pytest.raises(ValueError, match="no question"):
        squad.evaluate([], {})
    with pytest.raises(ValueError, match="question q has no answer"):
        squad.evaluate([_article(("q", []))], {"q": "x"})


def _run(*arguments):
    command = [sys.executable, "-m", "fastertransformer_tf.squad_evaluate_v1_1"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_program(tmp_path):
    dataset, predictions = tmp_path / "dataset.json", tmp_path / "predictions.json"
    data = [_article(("q", ["\u00dcber the hill"]))]
    dataset.write_text(json.dumps({"version": "1.1", "data": data}), encoding="utf-8")
    predictions.write_text(json.dumps({"q": "\u00fcber hill."}), encoding="utf-8")
    done = _run(dataset, predictions)
    assert done.stdout.strip().splitlines()[-1] == '{"exact_match": 100.0, "f1": 100.0}'
    assert "version" not in done.stderr

    dataset.write_text(json.dumps({"version": "v2.0", "data": data}))
    assert "has version 'v2.0', expected '1.1'" in _run(dataset, predictions).stderr

    failed = _run(dataset)
    assert failed.returncode == 1
    assert "1 arguments given, expected DATASET PREDICTIONS" in failed.stdout + failed.stderr

    predictions.write_text("[1]")
    failed = _run(dataset, predictions)
    assert failed.returncode == 1
    assert "holds [1], expected an object of question ids" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("data", "predictions", "message"),
    [
        ([], "{}", "dataset.json: the whole is [], expected an object"),
        ({}, "{}", "dataset.json: data is missing, expected a list"),
        ({"data": [{"paragraphs": 7}]}, "{}", "data[0].paragraphs is 7, expected a list"),
        (
            {"data": [{"paragraphs": [{"qas": [{"id": 3, "answers": []}]}]}]},
            "{}",
            "data[0].paragraphs[0].qas[0].id is 3, expected a text",
        ),
        (
            {"data": [{"paragraphs": [{"qas": [{"id": "q", "answers": ["x"]}]}]}]},
            "{}",
            'data[0].paragraphs[0].qas[0].answers[0] is "x", expected an object',
        ),
        ({"data": [_article(("q", ["x"]))]}, '{"q": 7}', "predictions.json: q is 7, expected a t"),
        ({"data": [_article(("q", ["x"]))]}, '{"q": "a", "q": "b"}', "has the key 'q' twice"),
        ({"data": [_article(("q", ["x"]))]}, "{", "predictions.json is not JSON"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path, data, predictions, message):
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    (tmp_path / "predictions.json").write_text(predictions)
    with pytest.raises(UserError, match=re.escape(message)):
        squad.evaluate_files(tmp_path / "dataset.json", tmp_path / "predictions.json")


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    for name, content in (
        ("dataset.json", {"version": "1.1", "data": [_article(("q", ["x"]))]}),
        ("predictions.json", {"q": "x"}),
    ):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    scores = squad.evaluate_files(tmp_path / "dataset.json", tmp_path / "predictions.json")
    assert scores == {"exact_match": 100.0, "f1": 100.0}
