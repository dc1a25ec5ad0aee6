"""Finds and loads the .so with the ops, after checking that this PyTorch has what it needs."""

from __future__ import annotations

import pathlib
import re

import torch

from fastertransformer_tf.files import op_library

LIBRARY_NAME = "_fastertransformer_torch.so"
LIBRARY_VARIABLE = "FT_TORCH_OPS_LIBRARY"
_PACKAGE_LIB = pathlib.Path(__file__).resolve().parent / "lib"

# The library uses the part of PyTorch's stable ABI that came with it, and runs with all later ones.
OLDEST_TORCH = (2, 10)


def check_torch(version: str) -> None:
    """Refuses a PyTorch that is too old.

    Args:
      version: `torch.__version__`.

    Raises:
      ImportError: It is older than `OLDEST_TORCH`.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if not match or tuple(map(int, match.groups())) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"fastertransformer_torch: torch is {version}, expected at least {oldest}: "
            f"pip install 'torch>={oldest}'"
        )


def library_path() -> pathlib.Path:
    """Returns where the .so is: `$FT_TORCH_OPS_LIBRARY` or the package's lib folder.

    Raises:
      ImportError: It is not there.
    """
    return op_library.find(
        "fastertransformer_torch",
        _PACKAGE_LIB,
        LIBRARY_NAME,
        LIBRARY_VARIABLE,
        "scripts/build_torch.sh",
    )


def load() -> None:
    """Checks PyTorch, then loads the .so, which registers its ops.

    Raises:
      ImportError: PyTorch is too old, or the .so is missing or damaged.
    """
    check_torch(torch.__version__)
    path = library_path()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(f"fastertransformer_torch: cannot load {path}: {error}") from error
