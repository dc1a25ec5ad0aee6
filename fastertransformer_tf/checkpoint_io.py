"""Writes files and name-based TensorFlow checkpoints so that a kill never leaves half of one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

DATA_SUFFIX = ".data-00000-of-00001"
INDEX_SUFFIX = ".index"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path`, renamed to `path` when the block ends well.

    Args:
      path: The file to make or replace, or the folder to make. Its own folder is created.

    Yields:
      The path to write to, in the same folder, so that the rename is atomic.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8 to a temporary file and renames it to `path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_checkpoint(prefix: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a name-based checkpoint, as `tf.compat.v1.train.Saver` does.

    The two files are written under a temporary prefix and renamed. An older checkpoint of the same
    name loses its index first: killed at any moment, `prefix` names the old checkpoint, none or the
    new one, never a mixture.

    Args:
      prefix: Path without suffix, e.g. `out/bert_model.ckpt`. Its folder is created.
      tensors: Variable name to value; any dtype TensorFlow can save (bfloat16 as ml_dtypes').

    Raises:
      ValueError: `tensors` is empty.
    """
    if not tensors:
        raise ValueError(f"checkpoint {prefix} would hold no tensor: at least one is expected")
    prefix = Path(prefix).absolute()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    temporary = f"{prefix}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    names = sorted(tensors)
    try:
        # A graph of its own: the caller may be in graph mode or eager, and keeps nothing of this.
        with tf.Graph().as_default(), tf.compat.v1.Session() as session, tf.device("/cpu:0"):
            holders = [
                tf.compat.v1.placeholder(tf.as_dtype(tensors[n].dtype), tensors[n].shape)
                for n in names
            ]
            save = tf.raw_ops.SaveV2(
                prefix=temporary,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=holders,
            )
            session.run(save, dict(zip(holders, (tensors[n] for n in names), strict=True)))
        publish_checkpoint(temporary, prefix)
    finally:
        for suffix in (DATA_SUFFIX, INDEX_SUFFIX):
            Path(temporary + suffix).unlink(missing_ok=True)


def publish_checkpoint(temporary: str | os.PathLike[str], prefix: str | os.PathLike[str]) -> None:
    """Renames a complete one-shard checkpoint; see `save_checkpoint` for the order.

    Args:
      temporary: Prefix that the two files have now.
      prefix: Prefix that they get.
    """
    Path(f"{prefix}{INDEX_SUFFIX}").unlink(missing_ok=True)
    os.replace(f"{temporary}{DATA_SUFFIX}", f"{prefix}{DATA_SUFFIX}")
    os.replace(f"{temporary}{INDEX_SUFFIX}", f"{prefix}{INDEX_SUFFIX}")
