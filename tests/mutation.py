"""Random damage to files, for fuzz tests: every change follows from a generator's seed."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

# A short run; FT_FUZZ_CASES asks for a long one.
CASES = int(os.environ.get("FT_FUZZ_CASES", "100"))

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 2**31, 2**63, 10**400, float("nan"), float("inf"),
    1e-320, "", "0", "x", "\0", "a\nb", "../x", "\u2028", "\U0001f600", "true", [], [[]], [None],
    ["x"], {}, {"x": None}, {"": {}}, {"type": "x"},
]  # fmt: skip


# Pieces of text and JSON that have broken readers.
TEXT_PIECES = (
    *(
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\t",
        b"\t" * 5,
        b'"',
        b"'",
        b",",
        b" ",
        b"\xff",
        b"\xc3",
        b"\x0b",
    ),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1c", b"a" * 300, b"##"),
    *(
        b"[UNK]",
        b"0",
        b"1",
        b"-1",
        b"1e400",
        b"NaN",
        b"null",
        b"true",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
    ),
    *(b"\\u0000", b"\\ud800", "\u4e2d\u6587".encode(), "\u0301".encode()),
)


def mutate_text(rng: np.random.Generator, content: bytes) -> bytes:
    """Inserts pieces or repeats a line of a text file, or changes any of its bytes."""
    match rng.integers(0, 3):
        case 0:
            for _ in range(rng.integers(1, 4)):
                at = int(rng.integers(0, len(content) + 1))
                content = content[:at] + TEXT_PIECES[rng.integers(len(TEXT_PIECES))] + content[at:]
            return content
        case 1:
            lines = content.split(b"\n")
            i, j = rng.integers(0, len(lines), 2)
            lines[i] = lines[j]
            return b"\n".join(lines)
        case _:
            return mutate_bytes(rng, content)


def mutate_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Flips, cuts, repeats, inserts or removes some bytes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(data) + 1))
        size = int(rng.integers(1, 9 if rng.random() < 0.7 else 1 + max(9, len(data) // 2)))
        match rng.integers(0, 6):
            case 0:
                for i in range(at, min(at + size, len(data))):
                    data[i] ^= 1 << int(rng.integers(0, 8))
            case 1:
                data[at : at + size] = rng.integers(0, 256, size, np.uint8).tobytes()
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = rng.integers(0, 256, size, np.uint8).tobytes()
            case 4:
                data[at:at] = data[at : at + size]
            case _:
                del data[at:]
    return bytes(data)


def mutate_json(rng: np.random.Generator, value: Any) -> Any:
    """Changes, removes, adds or moves one value somewhere in parsed JSON."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places:
        return _VALUES[rng.integers(len(_VALUES))]
    holder, key = places[rng.integers(len(places))]
    match rng.integers(0, 6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[str(key) + "x"] = holder.pop(key)
        case 2:
            other, other_key = places[rng.integers(len(places))]
            holder[key] = json.loads(json.dumps(other[other_key]))
        case 3 if isinstance(holder[key], (int, float)):
            holder[key] = holder[key] + int(rng.integers(-2, 3))
        case _:
            holder[key] = _VALUES[rng.integers(len(_VALUES))]
    return value


def _places(value: Any) -> Any:
    """Every container and key of a value."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def mutate_file(rng: np.random.Generator, path: pathlib.Path) -> None:
    """Damages a file: its JSON if it is such and often its bytes; or takes it away."""
    kind = rng.random()
    if kind < 0.03:
        path.unlink()
        if kind < 0.015:
            path.mkdir()
    elif path.suffix == ".json" and kind < 0.7:
        value = json.loads(path.read_bytes())
        for _ in range(rng.integers(1, 4)):
            value = mutate_json(rng, value)
        path.write_text(json.dumps(value))
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def copy_files(source: pathlib.Path, target: pathlib.Path) -> None:
    """Makes `target` a fresh copy of `source`."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
