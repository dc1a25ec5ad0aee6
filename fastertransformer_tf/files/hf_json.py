"""Reads the JSON objects of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files


def short(value: object) -> str:
    """`repr` of what a file says, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def existing(path: Path) -> Path:
    """Returns `path`.

    Raises:
      FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object; see `text_files.read_json`.

    Raises:
      FileNotFoundError: There is no such file.
      UserError: It holds something else.
    """
    content = text_files.read_json(existing(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def is_whole(value: object) -> bool:
    """Whether a value of JSON is a whole number (Python's bool is one, JSON's is none)."""
    return isinstance(value, int) and not isinstance(value, bool)
