"""The teacher of a distillation: a trained model, run beside the student's training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import tensorflow.compat.v1 as tf

from fastertransformer_tf.checkpoints import reading, restoring
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.models import modeling, point_encoder
from fastertransformer_tf.training.tasks import Task

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self

_INPUTS = ("input_ids", "input_mask", "segment_ids")


@dataclasses.dataclass(frozen=True)
class Distillation:
    """That a model learns from another one, beside its labels.

    Attributes:
      teacher: A float checkpoint of the same task and configuration.
      loss_scale: What the divergence is multiplied with, to be added to the loss of the labels.
    """

    teacher: reading.Checkpoint
    loss_scale: float


class Teacher:
    """A float model without dropout, in a graph and session of its own; a context manager.

    In a graph of its own its weights are neither trained nor saved, and the student's graph is what
    it would be without one.
    """

    def __init__(self, task: Task, source: reading.Checkpoint) -> None:
        """Builds the model and loads its weights.

        Raises:
          UserError: The checkpoint does not fit the model.
        """
        taps = point_encoder.Taps()
        options = modeling.EncoderOptions(use_tensorflow=True, taps=taps)
        with tf.Graph().as_default() as graph, modeling.encoder_options(options):
            self._inputs = {name: tf.placeholder(tf.int32, [None, None], name) for name in _INPUTS}
            with restoring.restored_variables(source, "float32") as restored:
                self._logits = task.model(self._inputs, False)
        self._session = tf.Session(graph=graph, config=sessions.session_config())
        restored.load(self._session)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Closes the session."""
        self._session.close()

    def logits(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the logits of a batch by name."""
        feeds = {placeholder: batch[name] for name, placeholder in self._inputs.items()}
        result: dict[str, np.ndarray] = self._session.run(self._logits, feeds)
        return result
