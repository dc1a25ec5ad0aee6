"""What a client may ask the server, and what it is told when it asks something else."""

from __future__ import annotations

import json
from typing import Any

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files
from fastertransformer_tf.scaleout.scorers import Texts


def parse(body: bytes, most_texts: int) -> list[Texts]:
    """Reads the body of a request: {"texts": [...]} or {"pairs": [[first, second], ...]}.

    Args:
      body: JSON in UTF-8.
      most_texts: Texts, or pairs, of a request at most.

    Raises:
      UserError: It is something else.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not JSON: {error}") from error
    if not isinstance(asked, dict) or len(asked) != 1 or set(asked) - {"texts", "pairs"}:
        shown = text_files.describe(sorted(asked) if isinstance(asked, dict) else asked)
        raise UserError(f'the body has {shown}, expected an object with "texts" or "pairs"')
    ((kind, values),) = asked.items()
    if not isinstance(values, list) or not 1 <= len(values) <= most_texts:
        shown = f"a list of {len(values)}" if isinstance(values, list) else "no list"
        raise UserError(f"{kind} is {shown}, expected a list of 1 to {most_texts}")
    return [_texts(kind, place, value) for place, value in enumerate(values)]


def _texts(kind: str, place: int, value: Any) -> Texts:
    if kind == "texts" and isinstance(value, str):
        return (value,)
    if kind == "pairs" and isinstance(value, list) and len(value) == 2:
        if all(isinstance(text, str) for text in value):
            return tuple(value)
    expected = "a text" if kind == "texts" else "a list of two texts"
    raise UserError(f"{kind}[{place}] is {text_files.describe(value)}, expected {expected}")
