"""The events of a training, as TensorBoard reads them: loss and learning rate of every step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import tensorflow.compat.v1 as tf

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self


class Events:
    """Writes events.out.tfevents.* into a folder; a context manager."""

    def __init__(self, folder: str | os.PathLike[str], step: int) -> None:
        """Opens a new file.

        Args:
          folder: Where to.
          step: That the training goes on from: what files before this one hold of later steps, the
            steps that a kill undid, TensorBoard then leaves out.
        """
        # A name has the second of its making: two trainings within one would share a file.
        self._writer = tf.summary.FileWriter(os.fspath(folder), filename_suffix=f".step{step}")
        start = tf.SessionLog(status=tf.SessionLog.START)
        self._writer.add_session_log(start, global_step=step)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Writes what is left, and closes the file."""
        self._writer.close()

    def add(self, step: int, **scalars: float) -> None:
        """Adds the values of a step by name."""
        values = [tf.Summary.Value(tag=tag, simple_value=v) for tag, v in scalars.items()]
        self._writer.add_summary(tf.Summary(value=values), global_step=step)
