"""Checks of paths that users give: what can be opened, made and written to."""

from __future__ import annotations

import os
import re

from fastertransformer_tf.errors import UserError


def refuse_url(path: str, flag: str) -> None:
    """Refuses a path that is none of this machine's.

    Raises:
      UserError: It is a URL, such as gs://bucket/folder.
    """
    if "://" in path:
        raise UserError(
            f"--{flag}={path} is a URL, expected a path of this machine: copy it here first"
        )


def refuse_pattern(path: str) -> None:
    """Refuses the path of a checkpoint that TensorFlow cannot read.

    Raises:
      UserError: It holds a character that TensorFlow, which looks for files by pattern, takes for
        something else.
    """
    if re.search(r"[][*?\\]", os.path.abspath(path)):
        raise UserError(
            f"TensorFlow takes the path {path} for a pattern and finds no checkpoint in it, "
            "expected one without * ? [ ] \\"
        )
