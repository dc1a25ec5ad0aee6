"""Tables of texts: JSONL, CSV and Parquet, cut into shards that are read one by one."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files

SUFFIXES = (".jsonl", ".csv", ".parquet")
# The longest field of a CSV file; Python's own limit is 128 KiB.
_LONGEST_FIELD = 1 << 24


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some rows of one file that follow each other.

    Attributes:
      number: Of all shards, from 0 on.
      path: The file.
      first: Its first row; in the file, from 0 on.
      rows: Number of rows.
      offset: Where the first row begins, bytes; 0 of Parquet.
    """

    number: int
    path: str
    first: int
    rows: int
    offset: int


def find_files(source: str) -> list[Path]:
    """The files of a table: one, or all of a folder with one of `SUFFIXES`, by name.

    Raises:
      FileNotFoundError: There is nothing.
      UserError: A suffix is unknown, or the folder holds files of several kinds.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"--input={source} is not there")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"--input={source} holds no file of {', '.join(SUFFIXES)}")
    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1 or kinds[0] not in SUFFIXES:
        raise UserError(
            f"--input={source} holds files of {', '.join(kinds)}, expected one kind of "
            f"{', '.join(SUFFIXES)}"
        )
    return files


def make_shards(files: Sequence[Path], shard_rows: int) -> list[Shard]:
    """Cuts tables into shards of `shard_rows` rows, the last of a file being shorter.

    Raises:
      OSError: A file cannot be read.
      UserError: A file is not what its name says.
    """
    shards: list[Shard] = []
    for file in files:
        first = 0
        for offset, rows in _pieces(file, shard_rows):
            shards.append(Shard(len(shards), str(file), first, rows, offset))
            first += rows
    return shards


def _pieces(file: Path, shard_rows: int) -> Iterator[tuple[int, int]]:
    """Offset and rows of each shard of a file."""
    if file.suffix == ".parquet":
        total = _parquet(file).metadata.num_rows
        yield from ((0, min(shard_rows, total - row)) for row in range(0, total, shard_rows))
        return
    begin = rows = 0
    with file.open("rb") as stream:
        lines = _Lines(stream, file)
        if file.suffix == ".csv":
            records: Iterator[Any] = _csv_records(lines)
            next(records, None)  # the header
            begin = lines.offset
        else:
            records = (line for line in lines if line.strip())
        for _ in records:
            rows += 1
            if rows == shard_rows:
                yield begin, rows
                begin, rows = lines.offset, 0
    if rows:
        yield begin, rows


class _Lines:
    """The lines of a UTF-8 file, and the offset behind the last one."""

    def __init__(self, stream: BinaryIO, file: Path, offset: int = 0) -> None:
        self._stream, self._file, self.offset = stream, file, offset
        stream.seek(offset)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        begin = self.offset
        self.offset += len(line)
        try:
            return line.decode("utf-8-sig" if begin == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._file}: the byte 0x{line[error.start]:02x} at {begin + error.start} is not "
                "UTF-8, expected a UTF-8 text file"
            ) from error


def _csv_records(lines: _Lines) -> Iterator[list[str]]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{lines._file}: not CSV before byte {lines.offset}: {error}"
            ) from error
        if record:
            yield record


def _parquet(file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is not a Parquet file: {error}") from error


def read_columns(shard: Shard, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Reads columns of texts of a shard.

    Returns:
      For each row its texts, in the order of `columns`.

    Raises:
      OSError: The file cannot be read.
      UserError: A column is missing, or a value is no text; names the file and the row.
    """
    file = Path(shard.path)
    if file.suffix == ".parquet":
        rows = _parquet_rows(file, shard, columns)
    elif file.suffix == ".csv":
        rows = _csv_rows(file, shard, columns)
    else:
        rows = _jsonl_rows(file, shard, columns)
    if len(rows) != shard.rows:
        raise UserError(
            f"{file} has {len(rows)} of rows {shard.first} to {shard.first + shard.rows - 1}: it "
            "has changed since it was cut into shards"
        )
    return rows


def _row(file: Path, row: int, values: Sequence[Any], columns: Sequence[str]) -> tuple[str, ...]:
    for column, value in zip(columns, values, strict=True):
        if not isinstance(value, str):
            raise UserError(
                f"{file}, row {row}: {column} is {text_files.describe(value)}, expected a text"
            )
    return tuple(values)


def _missing(file: Path, column: str, found: Sequence[str]) -> UserError:
    return UserError(f"{file} has no column {column}, but {', '.join(map(str, found))}")


def _parquet_rows(file: Path, shard: Shard, columns: Sequence[str]) -> list[tuple[str, ...]]:
    table = _parquet(file)
    for column in columns:
        if column not in table.schema_arrow.names:
            raise _missing(file, column, table.schema_arrow.names)
    rows: list[tuple[str, ...]] = []
    begin = 0
    end = shard.first + shard.rows
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        low, high = max(begin, shard.first), min(begin + count, end)
        if low < high:
            part = table.read_row_group(group, columns=list(columns)).slice(low - begin, high - low)
            values = [part.column(column).to_pylist() for column in columns]
            rows += (
                _row(file, low + i, row, columns) for i, row in enumerate(zip(*values, strict=True))
            )
        begin += count
    return rows


def _csv_rows(file: Path, shard: Shard, columns: Sequence[str]) -> list[tuple[str, ...]]:
    with file.open("rb") as stream:
        header = next(_csv_records(_Lines(stream, file)), [])
        for column in columns:
            if column not in header:
                raise _missing(file, column, header)
        places = [header.index(column) for column in columns]
        rows: list[tuple[str, ...]] = []
        for record in _csv_records(_Lines(stream, file, shard.offset)):
            if len(rows) == shard.rows:
                break
            row = shard.first + len(rows)
            if len(record) != len(header):
                raise UserError(
                    f"{file}, row {row} has {len(record)} fields, expected {len(header)}"
                )
            rows.append(tuple(record[place] for place in places))
    return rows


def _jsonl_rows(file: Path, shard: Shard, columns: Sequence[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    with file.open("rb") as stream:
        for line in _Lines(stream, file, shard.offset):
            if len(rows) == shard.rows:
                break
            if not line.strip():
                continue
            row = shard.first + len(rows)
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}, row {row} is not JSON: {error}") from error
            if not isinstance(record, dict):
                what = text_files.describe(record)
                raise UserError(f"{file}, row {row} is {what}, expected an object")
            for column in columns:
                if column not in record:
                    raise UserError(
                        f"{file}, row {row} has no {column}, but {', '.join(record) or 'nothing'}"
                    )
            rows.append(_row(file, row, [record[column] for column in columns], columns))
    return rows


def file_states(files: Sequence[Path]) -> dict[str, list[int]]:
    """Size and time of the last change, in ns, of each file: what tells a changed table."""
    return {str(file): [os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files}
