"""What the tasks of GLUE are judged by. Free of TensorFlow."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics

from fastertransformer_tf.data import glue


def _correlation(
    function: Callable[[np.ndarray, np.ndarray], Any], labels: np.ndarray, found: np.ndarray
) -> float:
    """A correlation by scipy; NaN where it is undefined: all numbers of a side are the same."""
    if np.ptp(labels) == 0 or np.ptp(found) == 0:
        return math.nan
    return float(function(labels, found)[0])


# Metric of a task -> how tables call it.
TITLES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
# Metric of a task -> its function of labels and predictions.
_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": metrics.f1_score,
    "mcc": metrics.matthews_corrcoef,
    "pearson": functools.partial(_correlation, stats.pearsonr),
    "spearman": functools.partial(_correlation, stats.spearmanr),
}


def evaluate(task: glue.Task, label_ids: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Computes the metrics of a task.

    Args:
      task: Its metrics.
      label_ids: int32 [examples], or float32 the numbers of a regression.
      logits: [examples, C], of a regression [examples, 1].

    Returns:
      Each of the task's metrics, in their order.
    """
    predictions = logits[:, 0] if task.is_regression else logits.argmax(axis=-1)
    return {name: float(_METRICS[name](label_ids, predictions)) for name in task.metrics}
