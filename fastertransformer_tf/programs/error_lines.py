"""Says in one line what went wrong in a program."""

from __future__ import annotations

import re
import sys
from typing import Any

from absl import flags

from fastertransformer_tf.errors import UserError


def describe_error(error: BaseException) -> str:
    """Says in one line, which is never empty, what went wrong.

    Args:
      error: What a program raised.

    Returns:
      The message of a user's mistake as it is; of the system's and TensorFlow's errors what they
      are about, without errno, graph nodes and stack; of any other exception its name and message,
      marked as a fault of the program.
    """
    name = type(error).__name__
    if isinstance(error, (UserError, flags.Error)):
        text = str(error)
    elif isinstance(error, OSError):
        text = _os_error(error)
    elif isinstance(error, MemoryError):
        text = f"out of memory: {error}" if str(error) else "out of memory"
    elif isinstance(error, ImportError):  # The installation is at fault.
        text = _import_error(error)
    elif _is_tensorflow_error(error):
        text = _tensorflow_error(error)
    else:
        what = f"{name}: {error}" if str(error).strip() else name
        text = (
            f"this is a bug of the program, not a mistake of yours: {what} (run again with "
            "--traceback to see where)"
        )
    return _one_line(text) or name


def _one_line(text: str) -> str:
    """Joins the lines of a text; other blanks stay, since a file name may hold them."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _os_error(error: OSError) -> str:
    """`file: reason` where the system says both, else the message."""
    if error.strerror is None or error.filename is None:
        return error.strerror or str(error)
    files = [str(f) for f in (error.filename, error.filename2) if f is not None]
    return f"{' -> '.join(files)}: {error.strerror}"


# Top-level module -> what pip calls its package: what the extra `programs` brings.
_PROGRAM_PACKAGES = {
    "bert": "bert-tensorflow",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
}


def _import_error(error: ImportError) -> str:
    """Says which package to install, where one is missing that a program needs."""
    module = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module in _PROGRAM_PACKAGES:
        return (
            f"{_PROGRAM_PACKAGES[module]} is not installed, which this program needs: "
            "pip install 'fastertransformer_tf[programs]'"
        )
    if isinstance(error, ModuleNotFoundError) and module == "tensorflow":
        return "tensorflow is not installed: pip install 'tensorflow==2.21.*'"
    return str(error)


def _is_tensorflow_error(error: BaseException) -> bool:
    """Whether TensorFlow raised it; it did not where it is not loaded."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(error, tensorflow.errors.OpError)


# What TensorFlow puts around the cause: the nodes, the op, and where it was created.
_GRAPH_DETAIL = re.compile(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:\w+\]")
_HEADINGS = ("Graph execution error:", "Detected at node", "Detected Node(s)")


def _tensorflow_error(error: Any) -> str:
    """The first sentence of a tf.errors.OpError that tells the cause."""
    kind = re.sub(r"(?<!^)(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()
    lines = (_GRAPH_DETAIL.sub("", line).strip() for line in str(error.message).splitlines())
    cause = next((line for line in lines if line and not line.startswith(_HEADINGS)), "")
    if cause.startswith("OOM ") or "out of memory" in cause.lower():
        return f"out of memory: {cause}; a smaller batch size or max_seq_length needs less"
    return f"TensorFlow: {kind}: {cause}" if cause else f"TensorFlow: {kind}"
