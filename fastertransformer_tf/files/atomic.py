"""Writes files and folders of files, whole or not at all.

Everything is first written into a working folder beside its place and then renamed. Whatever moment
a process is killed at, a reader finds what was there before or what is new, never half of it. The
next run removes what a killed one left. Free of TensorFlow.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastertransformer_tf.errors import UserError

DATA_SUFFIX = ".data-00000-of-00001"
INDEX_SUFFIX = ".index"
# linux/fs.h and fcntl.h.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# A folder with more files than this is not taken along: linking them all could take long.
_MOST_LINKED = 1000


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path, renamed to `path` when the block ends well.

    Args:
      path: The file to make or replace, or the folder to make. Its own folder is created.

    Yields:
      The path to write to, on the same file system, so that the rename is atomic.
    """
    path = Path(path)
    with _working_folder(path.parent, path.name) as work:
        temporary = work / path.name
        yield temporary
        os.replace(temporary, path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8 to a temporary file and renames it to `path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def staged_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty folder whose files get into `folder` together when the block ends well.

    Other files of `folder` stay; files of the same names are replaced, all in one step: by a rename
    where there was no `folder`, else by exchanging it with a folder that holds the new files and
    links to the others. Some folders cannot be exchanged: mount points, those whose parent may not
    be written, those that everybody may write (/tmp) and very full ones; and not every file system
    can. There the files are renamed one by one, the index of an old checkpoint being removed first
    and that of the new one coming last: killed in between, the folder has no checkpoint.

    Args:
      folder: Created where it is not there.

    Yields:
      The folder to write files to; folders inside it are not published.

    Raises:
      UserError: `folder` is no folder, or has a folder where a file is to be.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a folder or nothing")
    exchange = _can_be_exchanged(folder)
    with _working_folder(folder.parent if exchange else folder, folder.name) as work:
        stage = work / "new"
        stage.mkdir()
        yield stage
        _publish(stage, folder, exchange)


# ---- Working folders -----------------------------------------------------------------------------


@contextmanager
def _working_folder(parent: Path, name: str) -> Iterator[Path]:
    """Makes a folder in `parent` for what becomes `name`; first removes those of killed processes.

    Its process holds a lock on it, which the kernel releases however the process ends: a folder
    without a lock is a leftover. (A process id would say less: another process, or a process of
    another machine that shares the folder, may have it.)
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(parent, name)
    path, lock = _locked_folder(parent, name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path, name: str) -> tuple[Path, int]:
    """Makes a working folder and locks it."""
    while True:
        path = parent / f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            path.mkdir()
        except OSError as error:  # About what the user knows, not about a name made here.
            raise OSError(error.errno, error.strerror, str(parent / name)) from error
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # Another process took it for a leftover before it was locked.
        except OSError:
            return path, lock  # No locks on this file system: nobody can remove leftovers here.
        else:
            if os.fstat(lock).st_nlink:
                return path, lock
        os.close(lock)


def _remove_leftovers(parent: Path, name: str) -> None:
    """Removes the working folders of processes that are gone."""
    for path in parent.iterdir():
        if not (path.name.startswith(f".{name}.") and path.name.endswith(".tmp")):
            continue
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # No folder, not ours, or another process has just removed it.
        with suppress(OSError):  # Its process lives.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


# ---- Publishing a staged folder ------------------------------------------------------------------


def _publish(stage: Path, folder: Path, exchange: bool) -> None:
    """Gets the files of `stage` into `folder`; see `staged_folder`."""
    names = sorted(os.listdir(stage))
    if not folder.exists():
        stage.rename(folder)
        return
    for name in names:
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder, expected a file, which is replaced")
    is_new_checkpoint = all(
        name.endswith((DATA_SUFFIX, INDEX_SUFFIX)) and not (folder / name).exists()
        for name in names
    )
    # Of a new checkpoint nothing is seen before its index is there.
    if is_new_checkpoint or not exchange or not _publish_by_exchange(stage, folder, names):
        _publish_one_by_one(stage, folder, names)


def _can_be_exchanged(folder: Path) -> bool:
    """Whether `folder` may be exchanged with a copy that is made of links to its files."""
    if not folder.exists():
        return True
    status = folder.stat()
    files = (file for _, folders, files in os.walk(folder) for file in (*folders, *files))
    return (
        os.access(folder.parent, os.W_OK | os.X_OK)
        and status.st_dev == folder.parent.stat().st_dev
        and not folder.is_mount()
        and not status.st_mode & stat.S_IWOTH
        and len(list(itertools.islice(files, _MOST_LINKED + 1))) <= _MOST_LINKED
    )


def _publish_by_exchange(stage: Path, folder: Path, names: list[str]) -> bool:
    """Makes `stage` a copy of `folder` with the new files, and lets them change places, twice.

    After the second time `folder` is the same folder as before, with its owner, its rights and the
    shells that are in it, and holds the new files.

    Returns:
      False, and nothing has changed, where the file system cannot do it.
    """
    try:
        others = set(os.listdir(folder)) - set(names)
        for name in others:
            _link(folder / name, stage / name)
        shutil.copystat(folder, stage)
        _exchange(stage, folder)
    except OSError:
        return False
    for name in names:
        (stage / name).unlink(missing_ok=True)
        os.link(folder / name, stage / name)
    _exchange(stage, folder)
    # What somebody else put there between the two.
    for name in set(os.listdir(stage)) - others - set(names):
        os.rename(stage / name, folder / name)
    return True


def _publish_one_by_one(stage: Path, folder: Path, names: list[str]) -> None:
    """Renames the files, so that there is no readable checkpoint before all are there."""
    names = sorted(names, key=lambda name: name.endswith(INDEX_SUFFIX))
    for name in names:
        if name.endswith(INDEX_SUFFIX):
            (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(stage / name, folder / name)


def _link(source: Path, target: Path) -> None:
    """Links a file, or makes a folder of links."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=os.link)
    else:
        os.link(source, target, follow_symlinks=False)


def _exchange(first: Path, second: Path) -> None:
    """Lets two folders change places in one step, by renameat2(2), which Python has not.

    Raises:
      OSError: The file system or the C library cannot do it.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError(errno.ENOSYS, "the C library has no renameat2")
    paths = os.fsencode(first), os.fsencode(second)
    if library.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(first), None, str(second))
