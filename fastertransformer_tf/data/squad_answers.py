"""Chooses SQuAD's answers from logits and writes the files of run_squad.py.

The n-best selection is bert-tensorflow's run_squad; this module feeds it so that logits of padding
never take part, files appear whole, and questions are answered that stop run_squad.py in SQuAD 2:
those whose n best starts and ends hold no span of the document, and those about a blank paragraph.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from fastertransformer_tf import google_bert
from fastertransformer_tf.data.squad_files import SquadOptions
from fastertransformer_tf.data.squad_windows import SquadData
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic

PREDICTIONS_FILE = "predictions.json"
NBEST_FILE = "nbest_predictions.json"
NULL_ODDS_FILE = "null_odds.json"
_QUESTIONS_AT_ONCE = 256


def write_predictions(
    data: SquadData,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    options: SquadOptions,
    output_dir: str | Path,
) -> dict[str, str]:
    """Chooses the answers and writes predictions.json, nbest_predictions.json, null_odds.json.

    The logits of a window are cut to its true length first: what the model says about padding
    (and with padding removed there is nothing it could say) never takes part.

    Args:
      data: The questions and windows.
      start_logits: [E,S] float, one row a window of `data`.
      end_logits: [E,S].
      options: See there. null_odds.json is written with version_2_with_negative only.
      output_dir: Gets the files, each by a rename.

    Returns:
      Question id to answer.

    Raises:
      UserError: The logits are not finite where they count.
      ValueError: They are not [E,S].
    """
    shape = data.arrays["input_ids"].shape
    for name, logits in (("start_logits", start_logits), ("end_logits", end_logits)):
        if logits.shape != shape:
            raise ValueError(f"{name} is {list(logits.shape)}, expected {list(shape)}")
    for name, logits in (("start_logits", start_logits), ("end_logits", end_logits)):
        real = data.arrays["input_mask"] != 0
        if not np.isfinite(logits[real]).all():
            row = int(np.flatnonzero((~np.isfinite(logits) & real).any(axis=1))[0])
            question = data.examples[data.windows[row].example_index].qas_id
            raise UserError(f"{name} of a window of question {question!r} are not finite")
    answers = _Answers()
    windows_of = defaultdict(list)
    for row, window in enumerate(data.windows):
        windows_of[window.example_index].append(row)
    progress = tqdm(total=len(data.examples), desc="answers", unit="question")
    with progress, tempfile.TemporaryDirectory() as folder:
        # In parts, since google's code takes Python lists of all logits.
        for begin in range(0, len(data.examples), _QUESTIONS_AT_ONCE):
            part = range(begin, min(begin + _QUESTIONS_AT_ONCE, len(data.examples)))
            questions = [_question(data, i, windows_of[i], start_logits, end_logits) for i in part]
            _answer(questions, options, folder, answers)
            progress.update(len(part))
    output_dir = Path(output_dir)
    files = {PREDICTIONS_FILE: answers.predictions, NBEST_FILE: answers.nbest}
    if options.version_2_with_negative:
        files[NULL_ODDS_FILE] = answers.null_odds
    for name, content in files.items():
        atomic.write_text(output_dir / name, json.dumps(content, indent=4) + "\n")
    return answers.predictions


@dataclass(frozen=True)
class _Question:
    """A question with google's features of its windows and their logits, cut to real tokens."""

    example: Any
    features: list[Any]
    results: list[Any]


# An answer, the n best, and with SQuAD 2 the odds of "no answer".
_Answer = tuple[str, list[dict[str, Any]], float | None]


@dataclass
class _Answers:
    """What the three files hold, by question id in the order of the questions."""

    predictions: dict[str, Any] = field(default_factory=dict)
    nbest: dict[str, Any] = field(default_factory=dict)
    null_odds: dict[str, Any] = field(default_factory=dict)


def _question(
    data: SquadData,
    index: int,
    rows: Sequence[int],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
) -> _Question:
    run_squad = google_bert.run_squad()
    features, results = [], []
    for row in rows:
        window = data.windows[row]
        places = range(window.doc_start, window.doc_start + len(window.orig_words))
        ids = data.arrays["input_ids"][row, : window.length].tolist()
        features.append(
            run_squad.InputFeatures(
                unique_id=row,
                example_index=0,  # _answer counts.
                doc_span_index=0,
                tokens=[data.tokens[i] for i in ids],
                token_to_orig_map=dict(zip(places, window.orig_words.tolist(), strict=True)),
                token_is_max_context=dict(zip(places, window.max_context.tolist(), strict=True)),
                input_ids=ids,
                input_mask=None,
                segment_ids=None,
            )
        )
        logits = (part[row, : window.length].astype(float) for part in (start_logits, end_logits))
        results.append(run_squad.RawResult(row, *(values.tolist() for values in logits)))
    return _Question(data.examples[index], features, results)


def _answer(
    questions: Sequence[_Question], options: SquadOptions, folder: str, answers: _Answers
) -> None:
    """Answers some questions in order; see `write_predictions`."""
    found: dict[str, _Answer] = {}
    usual, wide = [], []
    for question in questions:
        if options.version_2_with_negative and not question.features:
            found[question.example.qas_id] = _NOTHING_TO_READ
        elif options.version_2_with_negative and not _has_span(question, options):
            wide.append(question)
        else:
            usual.append(question)
    found |= _select(usual, options, folder, options.n_best_size)
    for name, (answer, nbest, odds) in _select(
        wide, options, folder, options.max_seq_length
    ).items():
        found[name] = (answer, _best(nbest, options.n_best_size), odds)
    for question in questions:
        name = question.example.qas_id
        answers.predictions[name], answers.nbest[name], odds = found[name]
        if odds is not None:
            answers.null_odds[name] = odds


# A question without windows, its paragraph being blank, has no answer in SQuAD 2. run_squad.py
# begins with this score for "no answer", "large and positive".
_NOTHING_TO_READ: _Answer = (
    "",
    [{"text": "", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}],
    1000000.0,
)


def _best(nbest: list[dict[str, Any]], n_best_size: int) -> list[dict[str, Any]]:
    """Cuts a longer list of answers to the n best, as if no more had been looked at.

    The empty answer and the best other one stay, which run_squad.py has in each list of SQuAD 2.
    The probabilities are those of the answers that are left: their sum is 1.
    """
    kept = nbest[:n_best_size]
    for is_empty in (True, False):
        if not any((entry["text"] == "") == is_empty for entry in kept):
            kept += [entry for entry in nbest if (entry["text"] == "") == is_empty][:1]
    scores = np.array([entry["start_logit"] + entry["end_logit"] for entry in kept])
    powers = np.exp(scores - scores.max())
    return [
        entry | {"probability": float(p)}
        for entry, p in zip(kept, powers / powers.sum(), strict=True)
    ]


def _select(
    questions: Sequence[_Question], options: SquadOptions, folder: str, n_best_size: int
) -> dict[str, _Answer]:
    """Runs run_squad.write_predictions; returns by question id what its three files hold."""
    if not questions:
        return {}
    features = []
    for number, question in enumerate(questions):
        for feature in question.features:
            feature.example_index = number
            features.append(feature)
    paths = [str(Path(folder) / name) for name in (PREDICTIONS_FILE, NBEST_FILE, NULL_ODDS_FILE)]
    with _module_flags(options):
        google_bert.run_squad().write_predictions(
            [question.example for question in questions],
            features,
            [result for question in questions for result in question.results],
            n_best_size,
            options.max_answer_length,
            options.do_lower_case,
            *paths,
        )
    predictions, nbest = (json.loads(Path(p).read_text(encoding="utf-8")) for p in paths[:2])
    odds = json.loads(Path(paths[2]).read_text()) if options.version_2_with_negative else {}
    return {name: (predictions[name], nbest[name], odds.get(name)) for name in predictions}


def _has_span(question: _Question, options: SquadOptions) -> bool:
    """Whether the n best starts and ends of a question's windows make a span of the document.

    run_squad.py stops with an AttributeError where they do not in SQuAD 2: such a question looks at
    every position instead.
    """
    for window, result in zip(question.features, question.results, strict=True):
        starts, ends = (
            # Stable and descending, as run_squad sorts.
            np.argsort(-np.array(logits), kind="stable")[: options.n_best_size].tolist()
            for logits in (result.start_logits, result.end_logits)
        )
        inside = [start for start in starts if window.token_is_max_context.get(start, False)]
        ending = [end for end in ends if end in window.token_to_orig_map]
        if any(0 <= e - s < options.max_answer_length for s in inside for e in ending):
            return True
    return False


@contextlib.contextmanager
def _module_flags(options: SquadOptions) -> Iterator[None]:
    """Gives run_squad's functions the flags that they read."""
    values = flags.FlagValues()
    for name in ("version_2_with_negative", "verbose_logging"):
        flags.DEFINE_bool(name, getattr(options, name), "", flag_values=values)
    flags.DEFINE_float(
        "null_score_diff_threshold", options.null_score_diff_threshold, "", flag_values=values
    )
    values.mark_as_parsed()
    with google_bert.bound_flags(values):
        yield
