"""Reads SQuAD files; whatever is wrong with one is a sentence that says where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastertransformer_tf import google_bert
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files


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
        example = google_bert.run_squad().SquadExample(
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
