"""Scores SQuAD v1.1 and v2.0 predictions by the official rules. Free of TensorFlow.

The rules of v1.1 (Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of
Text", section 6.1, and the official v1.1 evaluation): answers are compared in lower case, without
ASCII punctuation, the words a, an, the, and superfluous white space. F1 is that of the two bags of
words. The best of a question's reference answers counts; a question without prediction scores 0.

Those of v2.0 (Rajpurkar, Jia and Liang 2018, "Know What You Don't Know", and its official
evaluation): the right answer to a question without references is none, "", and where either of two
answers has no word left their F1 is 1 if both have none, else 0.
"""

from __future__ import annotations

import collections
import functools
import math
import re
import string
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastertransformer_tf.data.squad_answers import NULL_ODDS_FILE
from fastertransformer_tf.data.squad_files import SquadOptions
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import text_files

VERSION = "1.1"

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower-cases, drops ASCII punctuation, then articles, then superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1_score(prediction: str, truth: str) -> float:
    """F1 in [0,1] of the words that prediction and truth share, counted with repetition."""
    predicted, true = normalize_answer(prediction).split(), normalize_answer(truth).split()
    num_same = (collections.Counter(predicted) & collections.Counter(true)).total()
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(predicted), num_same / len(true)
    return 2 * precision * recall / (precision + recall)


def exact_match_score(prediction: str, truth: str) -> float:
    """1.0 where both are the same after normalisation, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(truth))


def evaluate(
    articles: Iterable[Mapping[str, Any]], predictions: Mapping[str, str]
) -> dict[str, float]:
    """Scores predictions.

    Args:
      articles: `data` of a SQuAD v1.1 file.
      predictions: Question id to answer text; others than the questions' ids are ignored. Missing
        ones score 0 and are reported on stderr.

    Returns:
      {"exact_match": percent, "f1": percent}, means over all questions.

    Raises:
      UserError: There is no question, or one has no answer.
    """
    questions = [
        qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"]
    ]
    if not questions:
        raise UserError("the dataset has no question, at least one is expected")

    def best(score: Callable[[str, str], float], qa: Mapping[str, Any]) -> float:
        if qa["id"] not in predictions:
            return 0.0
        if not qa["answers"]:
            raise UserError(f"question {qa['id']} has no answer; SQuAD v1.1 always has one")
        return max(score(predictions[qa["id"]], answer["text"]) for answer in qa["answers"])

    for qa in questions:
        if qa["id"] not in predictions:
            print(f"question {qa['id']} has no prediction and scores 0", file=sys.stderr)
    return {
        name: 100.0 * sum(best(score, qa) for qa in questions) / len(questions)
        for name, score in (("exact_match", exact_match_score), ("f1", f1_score))
    }


def evaluate_v2(
    articles: Iterable[Mapping[str, Any]],
    predictions: Mapping[str, str],
    no_answer_odds: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Scores predictions of SQuAD v2.0.

    Args:
      articles: `data` of a SQuAD v2.0 file.
      predictions: Question id to answer text, "" for none; others than the questions' ids are
        ignored.
      no_answer_odds: Question id to how likely there is no answer, such as null_odds.json has it.
      threshold: Of these: a question above it is taken for one without answer, whatever is
        predicted.

    Returns:
      exact and f1, in percent, and total, the number of questions; the same of the questions with
      an answer (HasAns_...) and without (NoAns_...), where there are any; with `no_answer_odds`
      also best_exact and best_f1, what the best threshold of each would give, and that threshold,
      best_exact_thresh and best_f1_thresh.

    Raises:
      UserError: There is no question, or one has no prediction or no odds.
    """
    references = {
        qa["id"]: [answer["text"] for answer in qa["answers"]]
        for article in articles
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    }
    if not references:
        raise UserError("the dataset has no question, at least one is expected")
    for what, given in (("prediction", predictions), ("odds", no_answer_odds)):
        missing = [] if given is None else [name for name in references if name not in given]
        if missing:
            raise UserError(f"{len(missing)} questions have no {what}: {listed(missing)}")
    scores = {
        name: {
            question: _best_v2(score, predictions[question], texts)
            for question, texts in references.items()
        }
        for name, score in (("exact", exact_match_score), ("f1", f1_score_v2))
    }
    odds = no_answer_odds if no_answer_odds is not None else dict.fromkeys(references, -math.inf)
    thresholded = {
        name: {
            question: float(not references[question]) if odds[question] > threshold else score
            for question, score in of_questions.items()
        }
        for name, of_questions in scores.items()
    }
    result: dict[str, float] = {}
    for prefix, questions in (
        ("", list(references)),
        ("HasAns_", [question for question, texts in references.items() if texts]),
        ("NoAns_", [question for question, texts in references.items() if not texts]),
    ):
        if questions:
            for name, values in thresholded.items():
                total = sum(values[question] for question in questions)
                result[prefix + name] = 100.0 * total / len(questions)
            result[f"{prefix}total"] = len(questions)
    if no_answer_odds is not None:
        for name, values in scores.items():
            best = _best_threshold(values, references, predictions, no_answer_odds)
            result[f"best_{name}"], result[f"best_{name}_thresh"] = best
    return result


def f1_score_v2(prediction: str, truth: str) -> float:
    """`f1_score`, but 1 where nothing is left of both."""
    if not normalize_answer(prediction) or not normalize_answer(truth):
        return exact_match_score(prediction, truth)
    return f1_score(prediction, truth)


def _best_v2(score: Callable[[str, str], float], prediction: str, references: list[str]) -> float:
    """The best score by a question's references; those of which nothing is left do not count."""
    texts = [text for text in references if normalize_answer(text)] or [""]
    return max(score(prediction, text) for text in texts)


def _best_threshold(
    scores: Mapping[str, float],
    references: Mapping[str, list[str]],
    predictions: Mapping[str, str],
    odds: Mapping[str, float],
) -> tuple[float, float]:
    """The best score of any threshold, in percent, and the threshold.

    It rises from below all odds, where no question has an answer, past one question after the
    other, whose prediction then counts.
    """
    current: float = sum(not texts for texts in references.values())
    best, threshold = current, 0.0
    for question in sorted(odds, key=lambda name: odds[name]):
        if question not in references:
            continue
        if references[question]:
            current += scores[question]
        elif predictions[question]:
            current -= 1
        if current > best:
            best, threshold = current, odds[question]
    return 100.0 * best / len(references), threshold


def evaluate_v2_files(
    dataset_file: str | Path,
    predictions_file: str | Path,
    odds_file: str | Path | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Scores a predictions file against a SQuAD v2.0 file; see `evaluate_v2`.

    Args:
      dataset_file: SQuAD v2.0 JSON.
      predictions_file: JSON object from question id to answer.
      odds_file: JSON object from question id to the odds of no answer.
      threshold: See there.

    Raises:
      OSError: A file is missing or cannot be read.
      UserError: A file is not JSON of the expected form; says where.
    """
    articles = read_articles(dataset_file, version=None)
    odds = None if odds_file is None else _checked_odds(odds_file)
    return evaluate_v2(articles, _checked_predictions(predictions_file), odds, threshold)


def evaluate_files(dataset_file: str | Path, predictions_file: str | Path) -> dict[str, float]:
    """Scores a predictions file against a dataset file; see `evaluate`.

    Raises:
      OSError: A file is missing or cannot be read.
      UserError: A file is not JSON of the expected form; says where.
    """
    articles = read_articles(dataset_file)
    return evaluate(articles, _checked_predictions(predictions_file))


# Metric of SQuAD 2 -> how the table calls it.
NAMES_OF_V2 = {
    "exact": "exact match",
    "f1": "F1",
    "HasAns_f1": "F1 of those with an answer",
    "NoAns_f1": "F1 of those without",
    "best_exact": "best exact match",
    "best_exact_thresh": "null_score_diff_threshold of that",
    "best_f1": "best F1",
    "best_f1_thresh": "null_score_diff_threshold of that F1",
}


def known_scores(
    file: str, answers: Mapping[str, str], options: SquadOptions, output_dir: str
) -> dict[str, object]:
    """The scores of a run's answers, by what a table calls them; none where none are known.

    Args:
      file: The questions.
      answers: Question id to answer.
      options: Of which version they are.
      output_dir: Has null_odds.json of SQuAD 2.
    """
    is_v2 = options.version_2_with_negative
    dataset = text_files.read_json(file)
    paragraphs = [paragraph for one in dataset["data"] for paragraph in one["paragraphs"]]
    questions = [qa for paragraph in paragraphs for qa in paragraph["qas"]]
    if not all(qa.get("answers") or (is_v2 and qa.get("is_impossible")) for qa in questions):
        return {}
    try:
        version = None if is_v2 else VERSION
        articles = articles_of(dataset, file, version)
        if not is_v2:
            scores = evaluate(articles, answers)
            return {"exact match": scores["exact_match"], "F1": scores["f1"]}
        odds = text_files.read_json(Path(output_dir) / NULL_ODDS_FILE)
        # By their own threshold the answers are chosen already.
        scores = evaluate_v2(articles, answers, odds, threshold=math.inf)
    except UserError as error:
        print(f"no scores: {error}")  # Of the answers; the questions were checked before.
        return {}
    return {name: scores[key] for key, name in NAMES_OF_V2.items() if key in scores}


def read_articles(dataset_file: str | Path, version: str | None = VERSION) -> list[Any]:
    """Reads `data` of a SQuAD file.

    Args:
      dataset_file: The file.
      version: Another one than this is reported on stderr; None: any will do.

    Raises:
      OSError: The file is missing or cannot be read.
      UserError: It is not JSON of the expected form; says where.
    """
    return articles_of(text_files.read_json(dataset_file), dataset_file, version)


def articles_of(dataset: Any, dataset_file: str | Path, version: str | None) -> list[Any]:
    """As `read_articles`, of what the file holds."""
    articles = _checked_articles(dataset, str(dataset_file))
    if version is not None and dataset.get("version") != version:
        print(
            f"{dataset_file} has version {dataset.get('version')!r}, expected {version!r}",
            file=sys.stderr,
        )
    return articles


def _checked_articles(dataset: Any, file: str) -> list[Any]:
    """Returns `data` of a SQuAD file, all that is read of it being there and of its type."""
    get = functools.partial(text_files.member, file=file)
    articles = get(dataset, "data", list)
    for i, article in enumerate(articles):
        for j, paragraph in enumerate(get(article, "paragraphs", list, where=f"data[{i}]")):
            where = f"data[{i}].paragraphs[{j}]"
            for k, qa in enumerate(get(paragraph, "qas", list, where=where)):
                place = f"{where}.qas[{k}]"
                get(qa, "id", str, where=place)
                for m, answer in enumerate(get(qa, "answers", list, where=place)):
                    get(answer, "text", str, where=f"{place}.answers[{m}]")
    return articles


def _checked_predictions(file: str | Path) -> dict[str, str]:
    """Returns what a predictions file holds, question ids and answers."""
    predictions = text_files.read_json(file)
    if not isinstance(predictions, dict):
        shown = text_files.describe(predictions)
        raise UserError(f"{file} holds {shown}, expected an object of question ids and answers")
    for name in predictions:
        text_files.member(predictions, name, str, str(file))
    return predictions


def _checked_odds(file: str | Path) -> dict[str, float]:
    """Returns what a file of odds holds, question ids and numbers."""
    odds = text_files.read_json(file)
    if not isinstance(odds, dict):
        raise UserError(
            f"{file} holds {text_files.describe(odds)}, expected an object of question ids and "
            "numbers"
        )
    for name, value in odds.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or math.isnan(value):
            raise text_files.wrong(value, "a number", str(file), name)
    return odds
