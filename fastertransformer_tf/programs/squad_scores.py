"""Scores SQuAD v1.1 predictions by the official rules. Free of TensorFlow.

The rules (Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
section 6.1, and the official v1.1 evaluation): answers are compared in lower case, without ASCII
punctuation, the words a, an, the, and superfluous white space. F1 is that of the two bags of words.
The best of a question's reference answers counts; a question without prediction scores 0.
"""

from __future__ import annotations

import collections
import functools
import re
import string
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastertransformer_tf.errors import UserError
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


def evaluate_files(dataset_file: str | Path, predictions_file: str | Path) -> dict[str, float]:
    """Scores a predictions file against a dataset file; see `evaluate`.

    Raises:
      OSError: A file is missing or cannot be read.
      UserError: A file is not JSON of the expected form; says where.
    """
    articles = read_articles(dataset_file)
    return evaluate(articles, _checked_predictions(predictions_file))


def read_articles(dataset_file: str | Path) -> list[Any]:
    """Reads `data` of a SQuAD file; another version than 1.1 is reported on stderr.

    Raises:
      OSError: The file is missing or cannot be read.
      UserError: It is not JSON of the expected form; says where.
    """
    return articles_of(text_files.read_json(dataset_file), dataset_file)


def articles_of(dataset: Any, dataset_file: str | Path) -> list[Any]:
    """As `read_articles`, of what the file holds."""
    articles = _checked_articles(dataset, str(dataset_file))
    if dataset.get("version") != VERSION:
        print(
            f"{dataset_file} has version {dataset.get('version')!r}, expected {VERSION!r}",
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
