"""Where a library with ops is. Free of TensorFlow."""

from __future__ import annotations

import os
import pathlib


def find(package: str, folder: pathlib.Path, name: str, variable: str, build: str) -> pathlib.Path:
    """Returns the path of a package's .so.

    Args:
      package: Of whom an error speaks.
      folder: The package's lib folder.
      name: Of the file there.
      variable: An environment variable that may name another file.
      build: What builds it in a checkout.

    Raises:
      ImportError: It is not there.
    """
    override = os.environ.get(variable)
    path = pathlib.Path(override) if override else folder / name
    if not path.is_file():
        source = f"${variable}" if override else "the package's lib folder"
        raise ImportError(
            f"{package}: no op library at {path} ({source}), expected the built {name}: run "
            f"{build} in the checkout, or set {variable}"
        )
    return path.resolve()
