"""Files, folders and checkpoints appear whole or not at all, at whatever step a process is killed.

Every call that reaches the file system raises one of Python's audit events before it happens: a
child process dies at the n-th of them, for every n, and the parent looks at what it left.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from fastertransformer_tf.checkpoints import writing
from fastertransformer_tf.files import atomic

SET = ("vocab.txt", "bert_config.json", "m.ckpt.index", "m.ckpt.data-00000-of-00001")
INDEX = SET[2]


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise OSError("injected")


def _child(action: Callable[[], object], step: int, stop: Callable[[], None]) -> bool:
    """Runs `action` in a child, stopped at its `step`-th file operation.

    Returns:
      Whether it came to that step.
    """
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] != 0
    steps, stopped = itertools.count(), False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal stopped
        is_step = event == "open" or event.startswith(("os.", "shutil.", "fcntl.", "exchange"))
        if is_step and event != "os.kill" and next(steps) == step:
            stopped = True
            stop()

    exchange = atomic._exchange

    def audited_exchange(first: pathlib.Path, second: pathlib.Path) -> None:
        sys.audit("exchange")  # ctypes raises no event for a call.
        exchange(first, second)

    atomic._exchange = audited_exchange
    sys.addaudithook(hook)
    try:
        action()
    finally:
        os._exit(stopped)


def _publish(folder: pathlib.Path, text: str) -> None:
    with atomic.staged_folder(folder) as stage:
        for name in SET:
            (stage / name).write_text(text)


def _found(folder: pathlib.Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in SET if (folder / name).exists()}


def _whole(text: str) -> dict[str, str]:
    return dict.fromkeys(SET, text)


def _others(folder: pathlib.Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "deep" / "er" / "log").write_text("mine too")
    (folder / "link").symlink_to("nowhere")


def _entries(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _each_step(
    folder: pathlib.Path, prepare: Callable[[], None], stop: Callable[[], None]
) -> Iterator[int]:
    """Stops a publication at every step; yields after each, until one is not stopped."""
    for step in itertools.count():
        prepare()
        stopped = _child(lambda: _publish(folder, "new"), step, stop)
        if not stopped:
            assert _found(folder) == _whole("new")
        yield step
        if not stopped:
            return


@pytest.mark.parametrize("stop", [_kill, _fail])
@pytest.mark.parametrize("before", ["nothing", "empty", "others", "old"])
def test_a_folder_is_old_or_new_at_every_step(tmp_path, before, stop):
    folder = tmp_path / "out"
    if before != "nothing":
        folder.mkdir()
    if before in ("others", "old"):
        _others(folder)
    others = _entries(folder)

    def prepare() -> None:
        if before == "old":
            _publish(folder, "old")
        else:
            for name in SET:
                (folder / name).unlink(missing_ok=True)
        if before == "nothing" and folder.exists():
            folder.rmdir()

    expected_old = _whole("old") if before == "old" else {}
    seen = []
    for step in _each_step(folder, prepare, stop):
        found = _found(folder)
        assert found in (expected_old, _whole("new")), step
        seen.append(found == expected_old)
        if before != "nothing":
            assert _entries(folder) - set(SET) == others, step
        # The next run works, and leaves nothing of the one before.
        _publish(folder, "third")
        assert _found(folder) == _whole("third"), step
        assert _entries(folder) == {*SET, *others}, step
        assert [path.name for path in tmp_path.iterdir()] == ["out"], step
    assert any(seen) and not seen[-1] and len(seen) > 10


def test_where_folders_cannot_be_exchanged_a_reader_finds_no_checkpoint(tmp_path, monkeypatch):
    def unable(first: pathlib.Path, second: pathlib.Path) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(atomic, "_exchange", unable)
    folder = tmp_path / "out"
    folder.mkdir()
    _others(folder)
    others = _entries(folder)
    missing = 0
    for step in _each_step(folder, lambda: _publish(folder, "old"), _kill):
        found = _found(folder)
        if INDEX in found:
            assert found in (_whole("old"), _whole("new")), step
        else:
            missing += 1
    assert missing
    assert _entries(folder) == {*SET, *others}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["everybody's", "full", "parent not writable"])
def test_some_folders_are_not_exchanged(tmp_path, monkeypatch, kind):
    def refused(first: pathlib.Path, second: pathlib.Path) -> None:
        raise AssertionError("exchanged")

    monkeypatch.setattr(atomic, "_exchange", refused)
    folder = tmp_path / "out"
    folder.mkdir()
    if kind == "everybody's":
        folder.chmod(0o777)
    if kind == "full":
        monkeypatch.setattr(atomic, "_MOST_LINKED", 2)
        _others(folder)
    if kind == "parent not writable":  # Asked for, since root may write everywhere.
        monkeypatch.setattr(atomic.os, "access", lambda path, mode: path != tmp_path)
    others = _entries(folder)
    for text in ("old", "new"):
        _publish(folder, text)
        assert _found(folder) == _whole(text)
        assert _entries(folder) == {*SET, *others}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_and_files_in_the_way_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        _publish(tmp_path / "file", "new")
    (tmp_path / "out" / "vocab.txt").mkdir(parents=True)
    with pytest.raises(ValueError, match="vocab.txt is a folder, expected a file"):
        _publish(tmp_path / "out", "new")
    assert _entries(tmp_path) == {"file", "out", "out/vocab.txt"}


def test_an_exchanged_folder_is_the_same_as_before(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o750)
    before = folder.stat()
    for text in ("old", "new"):
        _publish(folder, text)
        assert _found(folder) == _whole(text)
        assert os.path.samestat(folder.stat(), before)  # Shells in it stay in it.
        assert folder.stat().st_mode == before.st_mode


def test_a_symbolic_link_to_the_folder_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    for text in ("old", "new"):
        _publish(tmp_path / "out", text)
        assert _found(tmp_path / "real") == _whole(text)
    assert (tmp_path / "out").is_symlink()


def test_a_file_is_old_or_new_at_every_step(tmp_path):
    path = tmp_path / "a.txt"
    for step in itertools.count():
        path.write_text("old")
        stopped = _child(lambda: atomic.write_text(path, "new"), step, _kill)
        assert path.read_text() in ("old", "new")
        if not stopped:
            break
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    ready, go_on = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with atomic.atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("child")
            os.write(ready[1], b"x")
            os.read(go_on[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    atomic.write_text(tmp_path / "a", "parent")
    assert len(list(tmp_path.glob(".a.*.tmp"))) == 1, "the child's is gone"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    atomic.write_text(tmp_path / "b", "parent")
    assert len(list(tmp_path.glob(".a.*.tmp"))) == 1, "b's writer removed a's"
    atomic.write_text(tmp_path / "a", "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    for descriptor in (*ready, *go_on):
        os.close(descriptor)


def test_a_checkpoint_is_replaced_whole(tmp_path):
    prefix = tmp_path / "deep" / "a.ckpt"
    writing.save_checkpoint(prefix, {"x": np.float32([1, 2])})
    writing.save_checkpoint(prefix, {"y": np.float16([3])})
    reader = tf.train.load_checkpoint(str(prefix))
    assert set(reader.get_variable_to_shape_map()) == {"y"}
    assert len(list(prefix.parent.iterdir())) == 2
    with pytest.raises(ValueError, match="would hold no tensor"):
        writing.save_checkpoint(prefix, {})
    assert len(list(prefix.parent.iterdir())) == 2
