"""What is trained: for each task the model, from inputs to logits, and the loss of its labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow.compat.v1 as tf

from fastertransformer_tf.models import heads
from fastertransformer_tf.training import losses

Tensors = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """A model and its loss, each a function that builds a part of the graph.

    Attributes:
      model: Takes int32 inputs (input_ids, input_mask and segment_ids [B,S]) and whether dropout is
        applied; returns the logits by name, float32 [B,C], or [B,S] where they choose a token.
      loss: Takes all inputs, the labels among them, and the logits; returns the mean [], which must
        not depend on padding.
      over_tokens: Whether the logits choose a token.
      is_regression: Whether they choose nothing, but are the numbers that are asked for.
    """

    model: Callable[[Tensors, bool], dict[str, tf.Tensor]]
    loss: Callable[[Tensors, Tensors], tf.Tensor]
    over_tokens: bool = False
    is_regression: bool = False


def _of_sequences(config: Any, num_labels: int) -> Callable[[Tensors, bool], dict[str, tf.Tensor]]:
    """The model of run_classifier.py with C outputs."""

    def model(inputs: Tensors, is_training: bool) -> dict[str, tf.Tensor]:
        logits = heads.sequence_logits(
            config,
            is_training,
            inputs["input_ids"],
            inputs["input_mask"],
            inputs["segment_ids"],
            num_labels,
        )
        return {"logits": logits}

    return model


def classifier(config: Any, num_labels: int) -> Task:
    """run_classifier.py's model; its input beside the texts is label_ids [B].

    Args:
      config: A BertConfig.
      num_labels: Classes, C.
    """

    def loss(inputs: Tensors, logits: Tensors) -> tf.Tensor:
        return losses.class_loss(logits["logits"], inputs["label_ids"])

    return Task(_of_sequences(config, num_labels), loss)


def regression(config: Any) -> Task:
    """The same model with one output; its input beside the texts is label_ids, float32 [B].

    Args:
      config: A BertConfig.
    """

    def loss(inputs: Tensors, logits: Tensors) -> tf.Tensor:
        return losses.value_loss(logits["logits"], inputs["label_ids"])

    return Task(_of_sequences(config, 1), loss, is_regression=True)


def squad(config: Any) -> Task:
    """run_squad.py's model; its inputs beside the texts are start_positions, end_positions [B].

    Args:
      config: A BertConfig.
    """

    def model(inputs: Tensors, is_training: bool) -> dict[str, tf.Tensor]:
        start, end = heads.span(
            config,
            inputs["input_ids"],
            inputs["input_mask"],
            inputs["segment_ids"],
            is_training=is_training,
        )
        return {"start": start, "end": end}

    def loss(inputs: Tensors, logits: Tensors) -> tf.Tensor:
        parts = [
            losses.span_loss(logits[part], inputs["input_mask"], inputs[f"{part}_positions"])
            for part in ("start", "end")
        ]
        return (parts[0] + parts[1]) / 2.0

    return Task(model, loss, over_tokens=True)
