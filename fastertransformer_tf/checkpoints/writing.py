"""Writes name-based TensorFlow checkpoints, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic, paths


def save_checkpoint(prefix: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a name-based checkpoint, as `tf.compat.v1.train.Saver` does, all at once.

    Args:
      prefix: Path without suffix, e.g. `out/bert_model.ckpt`. Its folder is created.
      tensors: Variable name to value; any dtype TensorFlow can save (bfloat16 as ml_dtypes').

    Raises:
      UserError: `tensors` is empty, or a folder has the name of one of the files.
    """
    prefix = Path(prefix)
    with atomic.staged_folder(prefix.parent) as stage:
        write_checkpoint(stage / prefix.name, tensors)


def write_checkpoint(prefix: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the two files of a checkpoint where they are, as for `save_checkpoint`.

    Args:
      prefix: Path without suffix, in a folder that is there, e.g. one of `atomic.staged_folder`.
      tensors: As for `save_checkpoint`.

    Raises:
      UserError: `tensors` is empty.
    """
    if not tensors:
        raise UserError(f"checkpoint {prefix} would hold no tensor: at least one is expected")
    names = sorted(tensors)
    # A graph of its own: the caller may be in graph mode or eager, and keeps nothing of this.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session, tf.device("/cpu:0"):
        holders = [
            tf.compat.v1.placeholder(tf.as_dtype(tensors[n].dtype), tensors[n].shape) for n in names
        ]
        save = tf.raw_ops.SaveV2(
            prefix=os.fspath(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=holders,
        )
        session.run(save, dict(zip(holders, (tensors[n] for n in names), strict=True)))


def check_prefix(prefix: str | os.PathLike[str], flag: str) -> None:
    """Refuses names that a checkpoint cannot be read under again.

    Args:
      prefix: What a user gave to write a checkpoint to.
      flag: The flag, to begin a message with.

    Raises:
      UserError: It is a folder, a file's name or a URL.
    """
    prefix = os.fspath(prefix)
    paths.refuse_url(prefix, flag)
    is_file_name = prefix.endswith(atomic.INDEX_SUFFIX) or ".data-" in Path(prefix).name
    if is_file_name or prefix.endswith("/") or Path(prefix).is_dir():
        raise UserError(
            f"{flag} is {prefix}, expected a prefix without suffix such as folder/model.ckpt"
        )
