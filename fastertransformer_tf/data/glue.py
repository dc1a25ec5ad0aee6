"""Reads the data of CoLA, MNLI, MRPC and XNLI in the files that run_classifier.py reads.

The same files, columns and examples as google's processors have (bert-tensorflow's
run_classifier.py), with an error that names file and line where a row is not as it should be.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files
from fastertransformer_tf.models import bert_compat

TRAIN, DEV, TEST = "train", "dev", "test"


@dataclasses.dataclass(frozen=True)
class Split:
    """One file of a task; columns are counted from 0, from the end where negative.

    Attributes:
      file: Its name below the data folder.
      text_a: Column of the first text.
      text_b: Column of the second; None where the task has one.
      label: Column of the label; None for the file to predict, whose labels, if any, are not read.
      header: Whether the first line is a header.
      language: Only rows with this word in the first column count.
    """

    file: str
    text_a: int
    text_b: int | None = None
    label: int | None = None
    header: bool = True
    language: str | None = None

    @property
    def num_columns(self) -> int:
        """Columns that a row has at least; a label that ends it comes after the texts."""
        label = self.label or 0
        return 1 + max(self.text_a, self.text_b or 0, label) + (label < 0)


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
      name: Of the task, in lower case.
      labels: In the order of the model's outputs.
      splits: TRAIN, DEV and TEST, those that there are, to the files.
      synonyms: Other words for a label in the files.
      metrics: What it is judged by: accuracy, f1 (of the second label) or mcc (Matthews
        correlation).
    """

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, Split]
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy",)

    @property
    def is_pair(self) -> bool:
        """Whether an example is two texts."""
        return any(split.text_b is not None for split in self.splits.values())

    def get_labels(self) -> list[str]:
        """Returns the labels, in order."""
        return list(self.labels)

    def get_train_examples(self, data_dir: str) -> list[Any]:
        """Reads the train set; see `examples`."""
        return self.examples(data_dir, TRAIN)

    def get_dev_examples(self, data_dir: str) -> list[Any]:
        """Reads the dev set; see `examples`."""
        return self.examples(data_dir, DEV)

    def get_test_examples(self, data_dir: str) -> list[Any]:
        """Reads the test set; see `examples`."""
        return self.examples(data_dir, TEST)

    def require(self, which: str) -> None:
        """Refuses a set that google's format of the task does not have.

        Raises:
          UserError: It is none of `splits`.
        """
        if which not in self.splits:
            raise UserError(
                f"--task_name={self.name} has no {which} data in google's format, expected one of "
                f"{', '.join(self.splits)}"
            )

    def examples(self, data_dir: str, which: str) -> list[Any]:
        """Reads a set.

        Args:
          data_dir: The task's folder.
          which: TRAIN, DEV or TEST.

        Returns:
          google's InputExample objects, at least one; those of the test set have the first label.

        Raises:
          OSError: The file is missing or cannot be read.
          UserError: The task has no such set, the file holds no example, or a row (named by file
            and line) has not enough columns or another label.
        """
        self.require(which)
        split = self.splits[which]
        path = os.path.join(data_dir, split.file)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"--data_dir={data_dir} has no {which} data of {self.name}: {path} not found"
            )
        example = bert_compat.run_classifier().InputExample
        found = []
        for number, line in enumerate(text_files.read_lines(path), 1):
            if number == 1 and split.header:
                continue
            where = f"{path}, line {number}"
            row = self._columns(line, split, where)
            if split.language not in (None, row[0]):
                continue
            found.append(
                example(
                    guid=f"{which}-{number - 1}",
                    text_a=row[split.text_a],
                    text_b=None if split.text_b is None else row[split.text_b],
                    label=self._label(row, split, where),
                )
            )
        if not found:
            raise UserError(f"{path} holds no example, expected at least one row")
        return found

    def _columns(self, line: str, split: Split, where: str) -> list[str]:
        row = line.split("\t")  # A quote is a character as any other.
        if len(row) < split.num_columns:
            what = f"{len(row)} column{'s' if len(row) > 1 else ''}" if line else "a blank line"
            raise UserError(
                f"{where}: {what}, expected at least {split.num_columns} columns, parted by tabs"
            )
        return row

    def _label(self, row: list[str], split: Split, where: str) -> str:
        if split.label is None:
            return self.labels[0]
        label = self.synonyms.get(row[split.label], row[split.label])
        if label not in self.labels:
            raise UserError(
                f"{where}: the label is {text_files.describe(label)}, expected "
                f"{' or '.join(self.labels)}"
            )
        return label


_THREE = ("contradiction", "entailment", "neutral")


def _mnli(name: str, label: int | None = -1) -> Split:
    return Split(f"{name}.tsv", text_a=8, text_b=9, label=label)


def _mrpc(name: str, label: int | None = 0) -> Split:
    return Split(f"{name}.tsv", text_a=3, text_b=4, label=label)


def _cola(name: str) -> Split:
    return Split(f"{name}.tsv", text_a=3, label=1, header=False)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola",
            ("0", "1"),
            {
                TRAIN: _cola("train"),
                DEV: _cola("dev"),
                TEST: Split("test.tsv", text_a=1),
            },
            metrics=("accuracy", "mcc"),
        ),
        Task(
            "mnli",
            _THREE,
            {
                TRAIN: _mnli("train"),
                DEV: _mnli("dev_matched"),
                TEST: _mnli("test_matched", label=None),
            },
        ),
        Task(
            "mrpc",
            ("0", "1"),
            {TRAIN: _mrpc("train"), DEV: _mrpc("dev"), TEST: _mrpc("test", label=None)},
            metrics=("accuracy", "f1"),
        ),
        Task(
            "xnli",
            _THREE,
            {
                TRAIN: Split(
                    os.path.join("multinli", "multinli.train.zh.tsv"), text_a=0, text_b=1, label=2
                ),
                DEV: Split("xnli.dev.tsv", text_a=6, text_b=7, label=1, language="zh"),
            },
            synonyms={"contradictory": "contradiction"},
        ),
    )
}
