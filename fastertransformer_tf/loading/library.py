"""Finds and loads the .so with the ops, after checking that it fits this TensorFlow."""

from __future__ import annotations

import pathlib
import re
from types import ModuleType

import tensorflow as tf

from fastertransformer_tf.files import op_library

LIBRARY_NAME = "_fastertransformer_tf.so"
LIBRARY_VARIABLE = "FT_TF_OPS_LIBRARY"
_PACKAGE_LIB = pathlib.Path(__file__).resolve().parent.parent / "lib"

# What the .so is built against. A different minor version changes C++ classes that an op uses: it
# may load and crash later, so it is refused before it is loaded.
TENSORFLOW_VERSION = "2.21"
CXX11_ABI_FLAG = 1


def check_tensorflow(version: str, cxx11_abi_flag: int) -> None:
    """Refuses a TensorFlow that the .so was not built for.

    Args:
      version: `tf.__version__`.
      cxx11_abi_flag: `tf.sysconfig.CXX11_ABI_FLAG`.

    Raises:
      ImportError: Another minor version or another C++ ABI.
    """
    match = re.match(r"(\d+)\.(\d+)(\.|$)", version)
    if not match or ".".join(match.groups()[:2]) != TENSORFLOW_VERSION:
        raise ImportError(
            f"fastertransformer_tf: tensorflow is {version}, expected {TENSORFLOW_VERSION}.* "
            f"(the ops are compiled against it): pip install 'tensorflow=={TENSORFLOW_VERSION}.*'"
        )
    if int(cxx11_abi_flag) != CXX11_ABI_FLAG:
        raise ImportError(
            f"fastertransformer_tf: tensorflow's _GLIBCXX_USE_CXX11_ABI is {int(cxx11_abi_flag)}, "
            f"expected {CXX11_ABI_FLAG}: install tensorflow from PyPI, or rebuild the ops with "
            "this TensorFlow (scripts/build.sh)"
        )


def library_path() -> pathlib.Path:
    """Returns where the .so is: `$FT_TF_OPS_LIBRARY` or the package's lib folder.

    Raises:
      ImportError: It is not there.
    """
    return op_library.find(
        "fastertransformer_tf", _PACKAGE_LIB, LIBRARY_NAME, LIBRARY_VARIABLE, "scripts/build.sh"
    )


def load() -> ModuleType:
    """Checks, then loads the .so.

    Returns:
      The module of generated op functions.

    Raises:
      ImportError: Wrong TensorFlow, or a missing or damaged .so.
    """
    check_tensorflow(tf.__version__, tf.sysconfig.CXX11_ABI_FLAG)
    path = library_path()
    try:
        return tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        message = getattr(error, "message", str(error))
        raise ImportError(f"fastertransformer_tf: cannot load {path}: {message}") from error
