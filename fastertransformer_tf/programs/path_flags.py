"""Checks of flags that name files and folders, before the work whose results go there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable

from absl import flags

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import paths


def check_export_dir(path: str | None) -> None:
    """Refuses to export over something, or where nothing can be written.

    Raises:
      UserError: The folder is there already, or cannot be made.
    """
    if not path:
        return
    if os.path.lexists(path):
        raise UserError(f"--export_dir={path} exists already, expected a new folder")
    check_writable(os.path.dirname(os.path.abspath(path)), f"--export_dir={path}")


def check_writable(folder: str, flag: str) -> None:
    """Makes a folder and a file in it, which is removed again.

    Done before the work whose results go there.

    Args:
      folder: The folder.
      flag: The flag, with its value, to begin a message with.

    Raises:
      UserError: It cannot be made, or nothing can be written to it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)  # A full disk shows with contents only.
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{flag}: {folder} cannot be written to: {reason}") from error


def check_paths(flag_values: flags.FlagValues, names: Iterable[str]) -> None:
    """Refuses flags of paths that are none of this machine's, all before anything is read.

    Raises:
      UserError: One is a URL.
    """
    for name in names:
        paths.refuse_url(flag_values[name].value or "", name)


def check_output_file(path: str, flag: str) -> None:
    """Refuses a file that could not be written after hours of work.

    Raises:
      UserError: It is a folder, or its own folder cannot be written to.
    """
    if os.path.isdir(path):
        raise UserError(f"--{flag}={path} is a folder, expected a file")
    check_writable(os.path.dirname(os.path.abspath(path)), f"--{flag}={path}")


def require_file(path: str, flag: str) -> None:
    """Refuses a flag that names no file.

    Raises:
      FileNotFoundError: There is none.
      UserError: It is something else than a file of this machine.
    """
    if os.path.isdir(path):
        raise UserError(f"--{flag}={path} is a folder, expected a file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"--{flag}={path} not found")


def make_output_dir(path: str) -> None:
    """Creates the output folder and sees that it can be written to.

    Raises:
      UserError: It cannot.
    """
    check_writable(path, f"--output_dir={path}")
