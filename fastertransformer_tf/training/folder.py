"""The folder of a training: one process at a time, what a kill left removed, its settings kept."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic, paths, text_files

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self
from fastertransformer_tf.training.settings import STEPS, compare_settings

_SETTINGS_FILE = "training.json"
_LOCK_FILE = "training.lock"
# A file of a checkpoint of ours, whole or still being written.
_SAVED = re.compile(r"model\.ckpt-(\d+)\.(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?$")
# What a kill may leave of the file `checkpoint`.
_UNFINISHED = re.compile(r"checkpoint\.tmp[0-9a-f]+$")


class TrainingFolder:
    """The folder of a training, for one process at a time; a context manager.

    Attributes:
      path: The folder.
      last: Prefix of the latest checkpoint in it; None where there is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Takes the folder, which need not exist yet."""
        self.path = Path(path)
        self.last: str | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Locks the folder, removes what a killed save left, and finds the latest checkpoint.

        Raises:
          OSError: It cannot be made or locked.
          UserError: Another training is running in it, or it holds a training that cannot go on.
        """
        paths.refuse_pattern(str(self.path))
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        try:
            ours = (self.path / _SETTINGS_FILE).is_file()
            if ours:
                self._remove_first_save()
            self.last = reading.latest_in(self.path)
            if ours:
                self._remove_leftovers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        """Unlocks it. The lock file stays: who removes one may remove another's."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> int:
        """Returns the locked file; the system unlocks it when the process ends, however it does."""
        path = self.path / _LOCK_FILE
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{path} is a symbolic link, expected a file") from error
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise UserError(
                f"another training is running in {self.path}: wait for its end or give another "
                "folder"
            ) from error
        except OSError:
            os.close(file)
            raise
        return file

    def _saved(self) -> dict[int, list[str]]:
        """Lists the files of checkpoints by step, also those that are not finished."""
        found: dict[int, list[str]] = {}
        for name in sorted(os.listdir(self.path)):
            match = _SAVED.match(name)
            if match:
                found.setdefault(int(match[1]), []).append(name)
        return found

    def _remove_first_save(self) -> None:
        """Removes what is left where the very first save was killed: nothing was trained yet."""
        saved = self._saved()
        if set(saved) == {0} and not (self.path / "checkpoint").exists():
            self._remove(saved[0])

    def _remove_leftovers(self) -> None:
        """Removes what killed saves left: unfinished files, and checkpoints after the latest."""
        names = [name for name in os.listdir(self.path) if _UNFINISHED.match(name)]
        latest = self._step(self.last) if self.last is not None else -1
        for step, files in self._saved().items():
            whole = any(file.endswith(".index") for file in files)
            unfinished = [file for file in files if ".tempstate" in file]
            names += files if step > latest or not whole else unfinished
        self._remove(names)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            (self.path / name).unlink()
        if names:
            print(f"removed what a killed save left in {self.path}: {', '.join(sorted(names))}")

    @staticmethod
    def _step(prefix: str) -> int:
        """The step in a checkpoint's name; without one (google's may have none) all are older."""
        digits = prefix.rpartition("-")[2]
        return int(digits) if digits.isdecimal() else 2**63

    def checkpoints(self) -> list[str]:
        """Lists the prefixes of whole checkpoints, the oldest first."""
        return [
            str(self.path / f"model.ckpt-{step}")
            for step, files in sorted(self._saved().items())
            if any(file.endswith(".index") for file in files)
        ]

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Compares what changes a training's result with training.json, where there is a training.

        Raises:
          UserError: It holds other settings, or is missing beside a checkpoint.
        """
        if self.last is None:
            return
        path = self.path / _SETTINGS_FILE
        if not path.is_file():
            raise UserError(
                f"{self.path} holds a checkpoint that this program did not train (no "
                f"{_SETTINGS_FILE}); give another output_dir"
            )
        old = text_files.read_json(path)
        if not isinstance(old, dict):
            raise UserError(f"{path} holds {text_files.describe(old)}, expected settings")
        compare_settings(self.path, old, settings)
        if old[STEPS] != settings[STEPS]:
            print(
                f"{STEPS} {old[STEPS]} becomes {settings[STEPS]}: the training in {self.path} "
                "goes on, its learning rate following the new number"
            )

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes training.json, whole or not at all."""
        text = json.dumps(settings, indent=2) + "\n"
        atomic.write_text(self.path / _SETTINGS_FILE, text)
