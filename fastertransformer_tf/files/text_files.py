"""Reads what users give as text or JSON; whatever is wrong with a file is one sentence.

Free of TensorFlow: the programs that need none use it too.
"""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

from fastertransformer_tf.errors import UserError


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    r"""Reads the lines of a UTF-8 file, with or without a byte-order mark.

    Only \n and \r\n end a line, as for TensorFlow's and so google's readers; str.splitlines knows
    eight more separators, which are ordinary characters of a line here.

    Raises:
      OSError: It cannot be read.
      UserError: It is not UTF-8; names the line.
    """
    data = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8, expected a "
            "UTF-8 text file"
        ) from error
    lines = text.split("\n")
    if not lines[-1]:  # What follows the last \n is no line.
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file in UTF-8, with or without a byte-order mark.

    Raises:
      OSError: It cannot be read.
      UserError: It is not JSON, or an object of it has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise UserError(f"{path} is ambiguous JSON: an object has the key {twice!r} twice")
        return result

    text = "\n".join(read_lines(path))
    try:
        return json.loads(text, object_pairs_hook=unique)
    except UserError:
        raise
    # A number of too many digits is a ValueError, brackets in brackets in ... a RecursionError.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON that can be read: {error}") from error


def describe(value: Any) -> str:
    """Shows a JSON value in an error message: as JSON, cut where it is long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_NOUNS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    bool: "true or false",
}


def member(parent: Any, key: str, kind: type, file: str, where: str = "") -> Any:
    """Returns a member of a JSON object, which must be there and of a type.

    Args:
      parent: The object.
      key: The member.
      kind: dict, list, str, int or bool.
      file: The file, to begin the message with.
      where: Where in the file the object is, e.g. data[3].paragraphs[0].

    Raises:
      UserError: `parent` is no object, or the member is missing or of another type.
    """
    path = f"{where}.{key}" if where else key
    if not isinstance(parent, dict):
        raise wrong(parent, _NOUNS[dict], file, where or "the whole")
    if key not in parent:
        raise UserError(f"{file}: {path} is missing, expected {_NOUNS[kind]}")
    value = parent[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong(value, _NOUNS[kind], file, path)
    return value


def wrong(value: Any, expected: str, file: str, where: str) -> UserError:
    """Makes the error of a value in a JSON file."""
    return UserError(f"{file}: {where} is {describe(value)}, expected {expected}")
