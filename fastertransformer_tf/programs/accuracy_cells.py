"""The cells of accuracy_report: what each is, and those that are measured already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic, text_files

# How a checkpoint was made -> how the table calls it; the float one is not quantized.
FLOAT = "float"
INT8_KINDS = {"ptq": "PTQ", "qat": "QAT", "distilled": "QAT with distillation"}
INT8_MODES = (1, 2)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
      task: mrpc or squad.
      kind: FLOAT or one of INT8_KINDS.
      int8_mode: 0 for the float model.
      floatx: Type of what is not int8.
      remove_padding: Whether the op leaves padding out.
    """

    task: str
    kind: str
    int8_mode: int
    floatx: str
    remove_padding: bool


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a checkpoint gives in a row.

    Attributes:
      metrics: Name to value: accuracy and f1 in [0,1], or exact_match and f1 in percent.
      num_examples: Rows of the batches: pairs, or windows of paragraphs.
      examples_per_second: Over all batches.
      ms_per_batch: Median.
      checkpoint_bytes: Of the model's variables in the types that they are run in.
      measured: When, in UTC.
    """

    metrics: Mapping[str, float]
    num_examples: int
    examples_per_second: float
    ms_per_batch: float
    checkpoint_bytes: int
    measured: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One checkpoint of a row; several of one kind, such as of several seeds, are several cells.

    Attributes:
      row: Its row.
      source: The checkpoint.
      determined_by: Everything that the result depends on, as JSON has it.
    """

    row: Row
    source: reading.Checkpoint
    determined_by: Mapping[str, Any]


class Cache:
    """A folder with a file for each measured cell, written whole, named by what determines it."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Takes the folder, which need not be there."""
        self._folder = folder

    def _path(self, cell: Cell) -> pathlib.Path:
        text = json.dumps(cell.determined_by, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:20]
        return self._folder / f"{cell.row.task}_{cell.row.kind}{cell.row.int8_mode}_{name}.json"

    def get(self, cell: Cell) -> Measurement | None:
        """Returns what was measured, or None.

        Raises:
          UserError: The cell's file is not as `put` wrote it.
        """
        path = self._path(cell)
        if not path.exists():
            return None
        stored = text_files.read_json(path)
        names = [field.name for field in dataclasses.fields(Measurement)]
        result = stored.get("result") if isinstance(stored, dict) else None
        # Through JSON: a tuple is a list there.
        expected = json.loads(json.dumps(cell.determined_by))
        if (
            not isinstance(result, dict)
            or sorted(result) != sorted(names)
            or stored.get("determined_by") != expected
        ):
            raise UserError(
                f"{path} is not what accuracy_report wrote there: remove it, and the cell is "
                "measured again"
            )
        return Measurement(**result)

    def put(self, cell: Cell, result: Measurement) -> None:
        """Keeps what was measured."""
        content = {"determined_by": cell.determined_by, "result": dataclasses.asdict(result)}
        atomic.write_text(self._path(cell), json.dumps(content, indent=1) + "\n")
