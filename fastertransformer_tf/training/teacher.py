"""The teacher of a distillation: a trained model, run beside the student's training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import tensorflow.compat.v1 as tf

from fastertransformer_tf import spec
from fastertransformer_tf.checkpoints import reading, restoring
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.models import modeling, point_encoder
from fastertransformer_tf.training import losses
from fastertransformer_tf.training.tasks import Task

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self


@dataclasses.dataclass(frozen=True)
class Distillation:
    """That a model learns from another one, beside its labels.

    Every part of the loss is multiplied with its scale and added to the loss of the labels.

    Attributes:
      teacher: A float checkpoint of the same task and configuration.
      loss_scale: Of the divergence of the logits, or, of a regression, of their squared error.
      hidden_states: Layers whose outputs are compared, 1 to L; 0 is the embeddings. Calibration
        may have moved their channels (`quantization.fold_shift`): then the teacher has to be the
        calibrated checkpoint.
      hidden_states_scale: Of the mean of their errors.
      attention: Layers whose attention scores are compared, 1 to L.
      attention_scale: Of the mean of their errors.
    """

    teacher: reading.Checkpoint
    loss_scale: float
    hidden_states: tuple[int, ...] = ()
    hidden_states_scale: float = 1.0
    attention: tuple[int, ...] = ()
    attention_scale: float = 1.0

    def compared(
        self, logits: Mapping[str, tf.Tensor], taps: point_encoder.Taps
    ) -> dict[str, tf.Tensor]:
        """Names what of a model, student or teacher, is compared, as it was built with `taps`."""
        return {
            **logits,
            **{f"hidden_state_{i}": taps.hidden_states[i] for i in self.hidden_states},
            **{f"attention_{i}": taps.attention_scores[i - 1] for i in self.attention},
        }

    def loss(
        self,
        task: Task,
        logits: Mapping[str, tf.Tensor],
        taps: point_encoder.Taps,
        teacher: Mapping[str, tf.Tensor],
        input_mask: tf.Tensor,
    ) -> tf.Tensor:
        """Builds what is added to the loss of the labels.

        Args:
          task: Of both models.
          logits: The student's.
          taps: The student's.
          teacher: What `compared` names, of the teacher.
          input_mask: int32 [B,S].

        Returns:
          The sum of all parts, each by its scale, float32 [].
        """
        student = self.compared(logits, taps)
        mask = input_mask if task.over_tokens else None
        if task.is_regression:
            parts = [losses.value_loss(logits[name], teacher[name]) for name in logits]
        else:
            parts = [losses.divergence(logits[name], teacher[name], mask) for name in logits]
        loss = self.loss_scale * tf.add_n(parts)
        for layers, kind, error, scale in (
            (
                self.hidden_states,
                "hidden_state",
                losses.hidden_states_error,
                self.hidden_states_scale,
            ),
            (self.attention, "attention", losses.attention_error, self.attention_scale),
        ):
            names = [f"{kind}_{layer}" for layer in layers]
            if names:
                parts = [error(student[name], teacher[name], input_mask) for name in names]
                loss += scale * tf.add_n(parts) / len(parts)
        return loss


class Teacher:
    """A float model without dropout, in a graph and session of its own; a context manager.

    In a graph of its own its weights are neither trained nor saved, and the student's graph is what
    it would be without one.
    """

    def __init__(self, task: Task, distillation: Distillation) -> None:
        """Builds the model and loads its weights.

        Raises:
          UserError: The checkpoint does not fit the model.
        """
        taps = point_encoder.Taps()
        options = modeling.EncoderOptions(use_tensorflow=True, taps=taps)
        with tf.Graph().as_default() as graph, modeling.encoder_options(options):
            self._inputs = {
                name: tf.placeholder(tf.int32, [None, None], name) for name in spec.MODEL_INPUTS
            }
            with restoring.restored_variables(distillation.teacher, "float32") as restored:
                logits = task.model(self._inputs, False)
            self._compared = distillation.compared(logits, taps)
        self._session = tf.Session(graph=graph, config=sessions.session_config())
        restored.load(self._session)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Closes the session."""
        self._session.close()

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what `Distillation.compared` names, of a batch."""
        feeds = {placeholder: batch[name] for name, placeholder in self._inputs.items()}
        result: dict[str, np.ndarray] = self._session.run(self._compared, feeds)
        return result
