"""How to train: batch size, steps, learning rate, checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastertransformer_tf.errors import UserError


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
      train_batch_size: Examples a step.
      num_train_steps: Steps in all.
      num_warmup_steps: Steps in which the learning rate rises from 0.
      learning_rate: Highest learning rate.
      save_checkpoints_steps: Steps from one checkpoint to the next; the last step always saves.
      seed: Of batch order, dropout and new variables; 0 to 2^31 - 1.
      keep_checkpoints: Checkpoints that stay in the folder.
      mixed_precision: Compute the encoder in bfloat16; weights and optimizer stay float32.
    """

    train_batch_size: int = 32
    num_train_steps: int = 1000
    num_warmup_steps: int = 100
    learning_rate: float = 5e-5
    save_checkpoints_steps: int = 1000
    seed: int = 12345
    keep_checkpoints: int = 5
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          UserError: One is out of range.
        """
        for name in ("train_batch_size", "num_train_steps", "save_checkpoints_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.num_warmup_steps <= self.num_train_steps:
            raise UserError(
                f"num_warmup_steps is {self.num_warmup_steps}, expected 0 to num_train_steps "
                f"{self.num_train_steps}"
            )
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed is {self.seed}, expected 0 to {2**31 - 1}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"learning_rate is {self.learning_rate}, expected a number above 0")

    def learning_rate_of(self, step: int) -> float:
        """Returns the learning rate of a step, the first being 0, as google's optimizer has it."""
        if step < self.num_warmup_steps:
            return self.learning_rate * step / self.num_warmup_steps
        return self.learning_rate * max(0.0, 1 - step / self.num_train_steps)

    @classmethod
    def from_epochs(
        cls,
        num_examples: int,
        num_train_epochs: float,
        warmup_proportion: float,
        train_batch_size: int,
        **others: Any,
    ) -> TrainingOptions:
        """Counts steps as google's scripts do: examples / batch size * epochs, rounded down.

        Args:
          num_examples: Training examples.
          num_train_epochs: Passes over them.
          warmup_proportion: Part of the steps that are warm-up, 0 to 1.
          train_batch_size: Examples a step.
          **others: Other attributes.

        Raises:
          UserError: A value is out of range, or there is no step to make.
        """
        if not (num_train_epochs > 0 and math.isfinite(num_train_epochs)):
            raise UserError(f"num_train_epochs is {num_train_epochs}, expected a number above 0")
        if not 0 <= warmup_proportion <= 1:
            raise UserError(f"warmup_proportion is {warmup_proportion}, expected 0 to 1")
        steps = int(num_examples / max(1, train_batch_size) * num_train_epochs)
        if steps < 1:
            raise UserError(
                f"{num_examples} examples for {num_train_epochs} epochs make no step of "
                f"train_batch_size {train_batch_size}"
            )
        return cls(
            train_batch_size=train_batch_size,
            num_train_steps=steps,
            num_warmup_steps=int(steps * warmup_proportion),
            **others,
        )
