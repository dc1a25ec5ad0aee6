"""Reads the data of GLUE's tasks, of XNLI and of own ones; an error names file and line.

CoLA, MNLI, MRPC and XNLI have the same files, columns and examples as google's processors
(bert-tensorflow's run_classifier.py); the others of GLUE are as its download has them. The columns
of an own task have names.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastertransformer_tf import google_bert
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files

TRAIN, DEV, TEST = "train", "dev", "test"
# Name of a task of own files.
TSV = "tsv"


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
      has_broken_rows: Rows with too few columns are left out, counted and told.
      width: Columns of each row; None: as many as are read, or more.
    """

    file: str
    text_a: int
    text_b: int | None = None
    label: int | None = None
    header: bool = True
    language: str | None = None
    has_broken_rows: bool = False
    width: int | None = None

    @property
    def num_columns(self) -> int:
        """Columns that a row has at least; a label that ends it comes after the texts."""
        label = self.label or 0
        return self.width or 1 + max(self.text_a, self.text_b or 0, label) + (label < 0)


@dataclasses.dataclass(frozen=True)
class NamedSplit:
    """One file of an own task, whose first line names the columns.

    Attributes:
      file: Its name below the data folder.
      text_a: The column of the first text.
      text_b: That of the second; None: text_b, where the file has one of that name.
      label: That of the label; None for the file to predict, whose labels, if any, are not read.
    """

    file: str
    text_a: str
    text_b: str | None = None
    label: str | None = None

    def located(self, lines: list[str], path: str) -> Split:
        """Finds the columns in the first of a file's lines.

        Raises:
          UserError: There is no such line, or not exactly one column of a name.
        """
        if not lines:
            raise UserError(f"{path} is empty, expected a first line that names the columns")
        header = lines[0].split("\t")

        def place(name: str) -> int:
            if header.count(name) != 1:
                raise UserError(
                    f"{path}, line 1 names {header.count(name)} columns {name!r}, expected one "
                    f"among {', '.join(header)}"
                )
            return header.index(name)

        text_b = self.text_b or ("text_b" if "text_b" in header else None)
        return Split(
            self.file,
            place(self.text_a),
            None if text_b is None else place(text_b),
            None if self.label is None else place(self.label),
            width=len(header),
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of classification, or of regression.

    Attributes:
      name: Of the task, in lower case.
      labels: In the order of the model's outputs; none where the label is a number to predict.
      splits: TRAIN, DEV and TEST, those that there are, to the files.
      synonyms: Other words for a label in the files.
      metrics: What it is judged by: accuracy, f1 (of the second label), mcc (Matthews correlation),
        pearson or spearman.
    """

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, Split | NamedSplit]
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy",)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number to predict."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Outputs of the model, C: one for each label, or one."""
        return len(self.labels) or 1

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
          google's InputExample objects, at least one, their labels as in the file; those of the
          test set have the first label, or 0.

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
        example = google_bert.run_classifier().InputExample
        lines = text_files.read_lines(path)
        if isinstance(split, NamedSplit):
            split = split.located(lines, path)
        found = []
        broken = 0
        for number, line in enumerate(lines, 1):
            if number == 1 and split.header:
                continue
            where = f"{path}, line {number}"
            if split.has_broken_rows and line.count("\t") + 1 < split.num_columns:
                broken += 1
                continue
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
        if broken:
            print(
                f"{path}: {broken} of {broken + len(found)} rows are left out, for they have fewer "
                f"than {split.num_columns} columns"
            )
        return found

    def _columns(self, line: str, split: Split, where: str) -> list[str]:
        row = line.split("\t")  # A quote is a character as any other.
        if len(row) < split.num_columns or len(row) > (split.width or len(row)):
            what = f"{len(row)} column{'s' if len(row) > 1 else ''}" if line else "a blank line"
            least = "" if split.width else "at least "
            raise UserError(
                f"{where}: {what}, expected {least}{split.num_columns} columns, parted by tabs"
            )
        return row

    def _label(self, row: list[str], split: Split, where: str) -> str:
        if split.label is None:
            return "0" if self.is_regression else self.labels[0]
        label = self.synonyms.get(row[split.label], row[split.label])
        if self.is_regression:
            if not _is_number(label):
                raise UserError(
                    f"{where}: the label is {text_files.describe(label)}, expected a number"
                )
            return label
        if label not in self.labels:
            raise UserError(
                f"{where}: the label is {text_files.describe(label)}, expected "
                f"{' or '.join(self.labels)}"
            )
        return label


def _is_number(text: str) -> bool:
    """Whether it is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_THREE = ("contradiction", "entailment", "neutral")


def _mnli(kind: str) -> dict[str, Split]:
    def split(name: str, label: int | None = -1) -> Split:
        return Split(f"{name}.tsv", text_a=8, text_b=9, label=label)

    return {
        TRAIN: split("train"),
        DEV: split(f"dev_{kind}"),
        TEST: split(f"test_{kind}", label=None),
    }


def _mrpc(name: str, label: int | None = 0) -> Split:
    return Split(f"{name}.tsv", text_a=3, text_b=4, label=label)


def _cola(name: str) -> Split:
    return Split(f"{name}.tsv", text_a=3, label=1, header=False)


def _numbered_pairs() -> dict[str, Split]:
    """Columns: index, first text, second text, label; the last is not in test.tsv."""

    def split(name: str, label: int | None = 3) -> Split:
        return Split(f"{name}.tsv", text_a=1, text_b=2, label=label)

    return {TRAIN: split("train"), DEV: split("dev"), TEST: split("test", label=None)}


def _qqp(name: str) -> Split:
    # Some rows of GLUE's files are broken in two, within a question.
    return Split(f"{name}.tsv", text_a=3, text_b=4, label=5, has_broken_rows=True)


def _sts_b(name: str, label: int | None = -1) -> Split:
    return Split(f"{name}.tsv", text_a=7, text_b=8, label=label)


_ENTAILMENT = ("entailment", "not_entailment")

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
            _mnli("matched"),
        ),
        Task(
            "mnli-mm",
            _THREE,
            _mnli("mismatched"),
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
        Task(
            "sst-2",
            ("0", "1"),
            {
                TRAIN: Split("train.tsv", text_a=0, label=1),
                DEV: Split("dev.tsv", text_a=0, label=1),
                TEST: Split("test.tsv", text_a=1),
            },
        ),
        Task(
            "sts-b",
            (),
            {TRAIN: _sts_b("train"), DEV: _sts_b("dev"), TEST: _sts_b("test", label=None)},
            metrics=("pearson", "spearman"),
        ),
        Task(
            "qqp",
            ("0", "1"),
            {
                TRAIN: _qqp("train"),
                DEV: _qqp("dev"),
                TEST: Split("test.tsv", text_a=1, text_b=2),
            },
            metrics=("accuracy", "f1"),
        ),
        Task("qnli", _ENTAILMENT, _numbered_pairs()),
        Task("rte", _ENTAILMENT, _numbered_pairs()),
        Task("wnli", ("0", "1"), _numbered_pairs()),
    )
}


def tsv_task(
    labels: Sequence[str], text_a: str = "text_a", text_b: str | None = None, label: str = "label"
) -> Task:
    """Makes a task of own files, train.tsv, dev.tsv and test.tsv, whose first lines name columns.

    Args:
      labels: In the order of the model's outputs.
      text_a: The column of the first text.
      text_b: That of the second; None: text_b, where a file has one of that name.
      label: That of the label; test.tsv need not have it.

    Raises:
      UserError: There are fewer than two labels, or two that are equal, or an empty one.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels) or "" in labels:
        raise UserError(
            f"--labels={','.join(labels)}, expected at least two different ones with commas between"
        )
    return Task(
        TSV,
        tuple(labels),
        {
            TRAIN: NamedSplit("train.tsv", text_a, text_b, label),
            DEV: NamedSplit("dev.tsv", text_a, text_b, label),
            TEST: NamedSplit("test.tsv", text_a, text_b),
        },
    )
