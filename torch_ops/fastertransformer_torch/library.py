"""Finds and loads the .so with the ops, after checking that this PyTorch has what it needs."""

from __future__ import annotations

import os
import pathlib
import re

import torch

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
    override = os.environ.get(LIBRARY_VARIABLE)
    path = pathlib.Path(override) if override else _PACKAGE_LIB / LIBRARY_NAME
    if not path.is_file():
        source = f"${LIBRARY_VARIABLE}" if override else "the package's lib folder"
        raise ImportError(
            f"fastertransformer_torch: no op library at {path} ({source}), expected the built "
            f"{LIBRARY_NAME}: run scripts/build_torch.sh in the checkout, or set {LIBRARY_VARIABLE}"
        )
    return path.resolve()


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
