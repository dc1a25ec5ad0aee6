"""Tables in shards: every row once, and what is wrong with a file in one sentence."""

from __future__ import annotations

import csv
import json
import pathlib

import pytest

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.scaleout import tables

ROWS = [
    ("plain", "one"),
    ("with, comma", 'and "quotes"'),
    ("two\nlines", "é中\u2028x"),
    ("", "empty before"),
    ("last", "row"),
] * 7


def write(folder: pathlib.Path, kind: str) -> pathlib.Path:
    path = folder / f"table{kind}"
    records = [{"id": i, "a": a, "b": b} for i, (a, b) in enumerate(ROWS)]
    if kind == ".jsonl":
        lines = [json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(records)]
        path.write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")  # And blank lines.
    elif kind == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "a", "b"])
            writer.writeheader()
            writer.writerows(records)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=4)
    return path


@pytest.mark.parametrize("kind", tables.SUFFIXES)
@pytest.mark.parametrize("shard_rows", [1, 3, 35, 100])
def test_every_row_is_in_one_shard(tmp_path: pathlib.Path, kind: str, shard_rows: int) -> None:
    path = write(tmp_path, kind)
    shards = tables.make_shards(tables.find_files(str(path)), shard_rows)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert max(shard.rows for shard in shards) == min(shard_rows, len(ROWS))
    found = [row for shard in shards for row in tables.read_columns(shard, ("b", "a"))]
    assert found == [(b, a) for a, b in ROWS]
    assert [s.first for s in shards] == list(range(0, len(ROWS), shard_rows))


def test_a_folder_is_its_files_by_name(tmp_path: pathlib.Path) -> None:
    for name, text in (("b.jsonl", "2"), ("a.jsonl", "1"), ("notes.txt", "")):
        (tmp_path / name).write_text(json.dumps({"a": text}))
    shards = tables.make_shards(tables.find_files(str(tmp_path)), 10)
    assert [tables.read_columns(shard, ("a",)) for shard in shards] == [[("1",)], [("2",)]]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.jsonl", b'{"a": "x"}\n{"a": 3}\n', "row 1: a is 3, expected a text"),
        ("t.jsonl", b'{"a": "x"}\n{"b": ""}\n', "row 1 has no a, but b"),
        ("t.jsonl", b'{"a": "x"}\nnonsense\n', "row 1 is not JSON"),
        ("t.jsonl", b'["a"]\n', 'row 0 is \\["a"\\], expected an object'),
        ("t.jsonl", b'{"a": "x"}\n\xff\n', "byte 0xff at 11 is not UTF-8"),
        ("t.csv", b"b,c\n1,2\n", "has no column a, but b, c"),
        ("t.csv", b"a,c\n1,2\n3\n", "row 1 has 1 fields, expected 2"),
        ("t.csv", b'a,c\n1,"2\n', "not CSV"),
        ("t.parquet", b"PAR0", "is not a Parquet file"),
        ("t.txt", b"", "expected one kind of"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: pathlib.Path, name: str, data: bytes, message: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        for shard in tables.make_shards(tables.find_files(str(tmp_path / name)), 10):
            tables.read_columns(shard, ("a",))


def test_a_table_that_changed_is_noticed(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, ".jsonl")
    (shard,) = tables.make_shards([path], 1000)
    path.write_text('{"a": "x"}\n')
    with pytest.raises(UserError, match="has changed since"):
        tables.read_columns(shard, ("a",))
