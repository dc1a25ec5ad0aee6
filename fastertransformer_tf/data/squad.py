"""SQuAD features and answers: what run_squad_wrap does before and after the model.

Windows and n-best selection are bert-tensorflow's run_squad; this module reads and feeds them so
that logits of padding never take part, files appear whole, and questions are answered that stop
run_squad.py in SQuAD 2: those whose n best starts and ends hold no span of the document, and those
about a blank paragraph.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from fastertransformer_tf.checkpoints import checkpoint_io
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files
from fastertransformer_tf.models import bert_compat

PREDICTIONS_FILE = "predictions.json"
NBEST_FILE = "nbest_predictions.json"
NULL_ODDS_FILE = "null_odds.json"
_QUESTIONS_AT_ONCE = 256


@dataclass(frozen=True)
class SquadOptions:
    """How SQuAD is cut into windows and answered; names and defaults of run_squad.py's flags."""

    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    n_best_size: int = 20
    max_answer_length: int = 30
    do_lower_case: bool = True
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0
    verbose_logging: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          UserError: One is out of range.
        """
        for name in ("doc_stride", "max_query_length", "n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.max_seq_length <= self.max_query_length + 3:
            raise UserError(
                f"max_seq_length is {self.max_seq_length}, expected more than max_query_length "
                f"{self.max_query_length} + 3"
            )
        if math.isnan(self.null_score_diff_threshold):
            raise UserError("null_score_diff_threshold is nan, expected a number")


@dataclass(frozen=True)
class Window:
    """What decoding needs of one window of a paragraph; small, for there may be a million.

    Attributes:
      example_index: Its question.
      length: Tokens, with [CLS] and [SEP].
      doc_start: Position of the first token of the paragraph: the question comes before.
      orig_words: int32 [D], of each token of the paragraph in the window the word it belongs to.
      max_context: bool [D], whether no other window has more context around the token.
    """

    example_index: int
    length: int
    doc_start: int
    orig_words: np.ndarray
    max_context: np.ndarray


@dataclass(frozen=True)
class SquadData:
    """Questions and their windows.

    Attributes:
      examples: run_squad.SquadExample, one a question.
      windows: One a row of the arrays; empty for training, which does not need them.
      arrays: input_ids, input_mask, segment_ids [E,S] int32, E windows; for training also
        start_positions and end_positions [E].
      num_dropped: Training questions left out, since their answer is not in the paragraph.
      tokens: Of each id.
    """

    examples: Sequence[Any]
    windows: Sequence[Window]
    arrays: Mapping[str, np.ndarray]
    num_dropped: int
    tokens: Mapping[int, str]


def read_examples(
    file: str | Path, options: SquadOptions, *, is_training: bool
) -> tuple[list[Any], int]:
    """Reads and checks a SQuAD file; its examples are those of run_squad.read_squad_examples.

    Args:
      file: SQuAD v1.1 or v2.0 JSON.
      options: See there; version_2_with_negative is read.
      is_training: With answers.

    Returns:
      run_squad.SquadExample, one a question; and how many training questions were left out, as
      google's program leaves them out, because the answer cannot be found in the paragraph.

    Raises:
      OSError: It cannot be read.
      UserError: It is not of SQuAD's form; says where, e.g. data[3].paragraphs[0].qas[1].id.
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"SQuAD file {file} does not exist")
    reader = _Reader(str(file), options.version_2_with_negative, is_training)
    return reader.read()


class _Reader:
    """Walks through a SQuAD file and knows where it is."""

    def __init__(self, file: str, version_2: bool, is_training: bool) -> None:
        self._file, self._version_2, self._is_training = file, version_2, is_training
        self._ids: dict[str, str] = {}
        self._examples: list[Any] = []
        self._dropped = 0

    def read(self) -> tuple[list[Any], int]:
        content = text_files.read_json(self._file)
        for i, article in enumerate(self._get(content, "", "data", list)):
            where = f"data[{i}]"
            for j, paragraph in enumerate(self._get(article, where, "paragraphs", list)):
                self._read_paragraph(paragraph, f"{where}.paragraphs[{j}]")
        if not self._examples:
            what = "question whose answer is in the paragraph" if self._dropped else "question"
            raise UserError(f"{self._file} holds no {what}, expected at least one")
        return self._examples, self._dropped

    def _get(self, parent: Any, where: str, key: str, kind: type) -> Any:
        return text_files.member(parent, key, kind, self._file, where)

    def _wrong(self, path: str, value: Any, expected: str) -> UserError:
        return text_files.wrong(value, expected, self._file, path)

    def _read_paragraph(self, paragraph: Any, where: str) -> None:
        words, word_of_character = _words(self._get(paragraph, where, "context", str))
        for i, qa in enumerate(self._get(paragraph, where, "qas", list)):
            self._read_question(qa, f"{where}.qas[{i}]", words, word_of_character)

    def _read_question(
        self, qa: Any, where: str, words: list[str], word_of_character: list[int]
    ) -> None:
        name = self._get(qa, where, "id", str)
        if name in self._ids:
            raise self._wrong(f"{where}.id", name, f"another than that of {self._ids[name]}")
        self._ids[name] = where
        example = bert_compat.run_squad().SquadExample(
            name, self._get(qa, where, "question", str), words
        )
        if self._is_training and not self._read_answer(
            example, qa, where, words, word_of_character
        ):
            self._dropped += 1
            return
        self._examples.append(example)

    def _read_answer(
        self, example: Any, qa: Any, where: str, words: list[str], word_of_character: list[int]
    ) -> bool:
        """Sets the answer to learn; returns whether it can be found in the paragraph."""
        if self._version_2 and self._get(qa, where, "is_impossible", bool):
            example.is_impossible, example.orig_answer_text = True, ""
            example.start_position = example.end_position = -1
            return True
        answers = self._get(qa, where, "answers", list)
        if len(answers) != 1:
            hint = "" if answers or self._version_2 else " (SQuAD 2: --version_2_with_negative)"
            raise UserError(
                f"{self._file}: {where}.answers has {len(answers)} answers, expected exactly 1 for "
                f"training{hint}"
            )
        where = f"{where}.answers[0]"
        text = self._get(answers[0], where, "text", str)
        start = self._get(answers[0], where, "answer_start", int)
        if not text.strip():
            raise self._wrong(f"{where}.text", text, "words of the context")
        end = start + len(text) - 1
        if start < 0 or end >= len(word_of_character):
            raise self._wrong(
                f"{where}.answer_start",
                start,
                f"a place in the context, which has {len(word_of_character)} characters, for the "
                f"answer's {len(text)}",
            )
        # A place before the first word belongs to none: google's code would count from the end.
        first, last = max(word_of_character[start], 0), max(word_of_character[end], 0)
        example.orig_answer_text = text
        example.start_position, example.end_position = first, last
        return " ".join(words[first : last + 1]).find(" ".join(text.split())) != -1


def _words(context: str) -> tuple[list[str], list[int]]:
    """Parts a paragraph as run_squad.py does, at five white-space characters.

    Returns:
      The words, and for each character the word that it belongs to or follows; -1 before all.
    """
    words: list[str] = []
    word_of_character = []
    after_space = True
    for character in context:
        is_space = character in " \t\r\n\u202f"
        if not is_space and after_space:
            words.append(character)
        elif not is_space:
            words[-1] += character
        after_space = is_space
        word_of_character.append(len(words) - 1)
    return words, word_of_character


def load(
    file: str | Path, tokenizer: Any, options: SquadOptions, *, is_training: bool, seed: int = 12345
) -> SquadData:
    """Reads a SQuAD file and cuts its paragraphs into windows; see `read_examples`."""
    examples, dropped = read_examples(file, options, is_training=is_training)
    return make_windows(examples, dropped, tokenizer, options, is_training=is_training, seed=seed)


def make_windows(
    examples: list[Any],
    num_dropped: int,
    tokenizer: Any,
    options: SquadOptions,
    *,
    is_training: bool,
    seed: int = 12345,
) -> SquadData:
    """Cuts the paragraphs of questions into windows.

    Args:
      examples: What `read_examples` returned.
      num_dropped: The same.
      tokenizer: bert-tensorflow's FullTokenizer.
      options: See there.
      is_training: Questions in random order, as in run_squad.py.
      seed: Of that order.

    Raises:
      UserError: There is no window to train on.
    """
    if is_training:
        if num_dropped:
            print(
                f"{num_dropped} of {num_dropped + len(examples)} questions are left out of "
                "training: their answer is not in the paragraph where answer_start says"
            )
        examples = list(examples)
        np.random.default_rng(seed).shuffle(examples)  # type: ignore[arg-type]
    windows: list[Window] = []
    rows: list[np.ndarray] = []
    positions: list[tuple[int, int]] = []

    def keep(feature: Any) -> None:
        # google's object of lists and dicts takes 60 KB; this, 3 KB.
        window = _window(feature, for_decoding=not is_training)
        rows.append(np.array(feature.input_ids[: window.length], np.int32))
        if is_training:
            positions.append((feature.start_position, feature.end_position))
        windows.append(window)

    bert_compat.run_squad().convert_examples_to_features(
        examples=tqdm(examples, desc="tokenizing", unit="question"),
        tokenizer=tokenizer,
        max_seq_length=options.max_seq_length,
        doc_stride=options.doc_stride,
        max_query_length=options.max_query_length,
        is_training=is_training,
        output_fn=keep,
    )
    arrays = _arrays(rows, windows, options.max_seq_length)
    if is_training:
        if not rows:
            raise UserError("no question has a paragraph with words: there is nothing to train on")
        starts, ends = np.array(positions, np.int32).T
        arrays |= {"start_positions": starts, "end_positions": ends}
    return SquadData(
        examples, () if is_training else windows, arrays, num_dropped, tokenizer.inv_vocab
    )


def _window(feature: Any, *, for_decoding: bool) -> Window:
    first = next(iter(feature.token_to_orig_map))
    places = list(feature.token_to_orig_map) if for_decoding else []  # In order, without a gap.
    return Window(
        feature.example_index,
        len(feature.tokens),
        first,
        np.array([feature.token_to_orig_map[p] for p in places], np.int32),
        np.array([feature.token_is_max_context[p] for p in places], bool),
    )


def _arrays(
    rows: list[np.ndarray], windows: list[Window], max_seq_length: int
) -> dict[str, np.ndarray]:
    """Pads the ids of windows and tells real tokens and the paragraph's from the others."""
    ids = np.zeros((len(rows), max_seq_length), np.int32)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    places = np.arange(max_seq_length)
    lengths = np.array([w.length for w in windows], np.int32).reshape(-1, 1)
    starts = np.array([w.doc_start for w in windows], np.int32).reshape(-1, 1)
    mask = (places < lengths).astype(np.int32)
    return {
        "input_ids": ids,
        "input_mask": mask,
        "segment_ids": mask * (places >= starts).astype(np.int32),
    }


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
        checkpoint_io.write_text(output_dir / name, json.dumps(content, indent=4) + "\n")
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
    run_squad = bert_compat.run_squad()
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
        bert_compat.run_squad().write_predictions(
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
    with bert_compat.bound_flags(values):
        yield
