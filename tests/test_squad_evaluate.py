"""squad_evaluate_v1_1 and _v2_0: golden answers worked out by hand from the official rules."""

import json
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from fastertransformer_tf.data import squad_scores as squad
from fastertransformer_tf.errors import UserError


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


# Questions of SQuAD 2, their answers, what is predicted, and the odds that there is no answer.
V2 = {
    "right": (["the Big dog", "dog"], "big dog", -3.0),
    "near": (["small red cat"], "red cat sat", -1.0),  # F1 2/3.
    "none": ([], "", 2.5),
    "wrong": ([], "cat", 0.5),
    "missed": (["x"], "", 3.0),
}
V2_ARTICLES = [_article(*((name, texts) for name, (texts, _, _) in V2.items()))]
V2_PREDICTIONS = {name: prediction for name, (_, prediction, _) in V2.items()} | {"other": "x"}
V2_ODDS = {name: odds for name, (_, _, odds) in V2.items()} | {"other": 0.0}


def test_v2_scores():
    assert squad.evaluate_v2(V2_ARTICLES, V2_PREDICTIONS) == pytest.approx({
        "exact": 100 * 2 / 5, "f1": 100 * (2 + 2 / 3) / 5, "total": 5,
        "HasAns_exact": 100 / 3, "HasAns_f1": 100 * (1 + 2 / 3) / 3, "HasAns_total": 3,
        "NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("threshold", "exact", "f1", "no_answer"),
    [
        (1.0, 2, 2 + 2 / 3, 1),
        (0.0, 3, 3 + 2 / 3, 2),  # "wrong" becomes right.
        (0.5, 2, 2 + 2 / 3, 1),  # Above it only.
        (-2.0, 3, 3, 2),  # "near" is lost.
        (-4.0, 2, 2, 2),
    ],
)
def test_v2_thresholds(threshold, exact, f1, no_answer):
    scores = squad.evaluate_v2(V2_ARTICLES, V2_PREDICTIONS, V2_ODDS, threshold)
    assert scores["exact"] == pytest.approx(100 * exact / 5)
    assert scores["f1"] == pytest.approx(100 * f1 / 5)
    assert scores["NoAns_exact"] == scores["NoAns_f1"] == pytest.approx(100 * no_answer / 2)
    # Below -3 the two without an answer are right; from -3 on "right" is, and from -1 on "near".
    best = {key: scores[key] for key in scores if key.startswith("best")}
    assert best == pytest.approx({
        "best_exact": 60, "best_exact_thresh": -3.0,
        "best_f1": 100 * (3 + 2 / 3) / 5, "best_f1_thresh": -1.0,
    })  # fmt: skip


def test_v2_best_of_questions_without_answers_is_none_at_all():
    articles = [_article(("a", []), ("b", []))]
    scores = squad.evaluate_v2(articles, {"a": "x", "b": ""}, {"a": -5.0, "b": 1.0})
    assert scores == pytest.approx({
        "exact": 50, "f1": 50, "total": 2, "NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2,
        "best_exact": 100, "best_exact_thresh": 0.0, "best_f1": 100, "best_f1_thresh": 0.0,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("prediction", "truth", "f1"),
    [("the", "a", 1), ("", "", 1), ("", "word", 0), ("word", "the", 0), ("b b", "b", 2 / 3)],
)
def test_v2_f1_where_nothing_is_left(prediction, truth, f1):
    assert squad.f1_score_v2(prediction, truth) == pytest.approx(f1)


def test_v2_references_of_which_nothing_is_left_do_not_count():
    articles = [_article(("one", ["The", "cat"]), ("all", ["the", "!"]))]
    scores = squad.evaluate_v2(articles, {"one": "", "all": ""})
    # The official program takes "all" for one with an answer, and "" for that.
    assert (scores["HasAns_exact"], scores["HasAns_total"]) == (50, 2)


def test_v2_bad_data(tmp_path):
    with pytest.raises(UserError, match="no question"):
        squad.evaluate_v2([], {})
    with pytest.raises(UserError, match="1 questions have no prediction: near"):
        squad.evaluate_v2(
            V2_ARTICLES, {k: v for k, v in V2_PREDICTIONS.items() if k != "near"}, V2_ODDS
        )
    with pytest.raises(UserError, match="5 questions have no odds: right; near; none; wrong; mis"):
        squad.evaluate_v2(V2_ARTICLES, V2_PREDICTIONS, {})
    files = [tmp_path / name for name in ("data.json", "answers.json", "odds.json")]
    files[0].write_text(json.dumps({"version": "v2.0", "data": V2_ARTICLES}))
    files[1].write_text(json.dumps(V2_PREDICTIONS))
    for text, message in (
        ("[]", "odds.json holds [], expected an object of question ids and numbers"),
        ('{"right": "1"}', 'odds.json: right is "1", expected a number'),
        ('{"right": true}', "odds.json: right is true, expected a number"),
        ('{"right": NaN}', "odds.json: right is NaN, expected a number"),
    ):
        files[2].write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            squad.evaluate_v2_files(*files)


def test_v2_program(tmp_path):
    files = [tmp_path / name for name in ("data.json", "answers.json", "odds.json")]
    data = {"version": "v2.0", "data": V2_ARTICLES}
    for file, content in zip(files, (data, V2_PREDICTIONS, V2_ODDS), strict=True):
        file.write_text(json.dumps(content))
    plain = _run(*files[:2], version="v2_0")
    assert json.loads(plain.stdout) == squad.evaluate_v2_files(*files[:2])
    assert not plain.stderr
    given = (f"--na_prob_file={files[2]}", "--na_prob_thresh=-2")
    scored = _run(*files[:2], *given, version="v2_0")
    assert json.loads(scored.stdout) == squad.evaluate_v2_files(*files, -2.0)
    for arguments, message in (
        (files[:1], "1 arguments given, expected DATASET PREDICTIONS"),
        ((*files[:2], given[1]), "--na_prob_thresh needs --na_prob_file"),
    ):
        failed = _run(*arguments, version="v2_0")
        assert failed.returncode == 1 and message in failed.stderr


def _run(*arguments, version="v1_1"):
    command = [sys.executable, "-m", f"fastertransformer_tf.squad_evaluate_{version}"]
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
