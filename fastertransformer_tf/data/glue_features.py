"""Turns the examples of GLUE tasks into features, by bert-tensorflow's run_classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import tqdm

from fastertransformer_tf import google_bert
from fastertransformer_tf.errors import UserError


def make_features(
    examples: list[Any], labels: list[str], max_seq_length: int, tokenizer: Any
) -> dict[str, np.ndarray]:
    """Tokenizes examples as google's program does.

    Args:
      examples: google's InputExample objects.
      labels: The task's labels, in order; none where the label of an example is a number.
      max_seq_length: S; longer pairs are cut, shorter ones padded.
      tokenizer: A FullTokenizer.

    Returns:
      int32 arrays input_ids, input_mask, segment_ids [examples, S] and label_ids [examples]: the
      number of each label, or, of numbers, float32 and the number itself.

    Raises:
      UserError: An example has a label that the task has not.
    """
    unknown = sorted({str(e.label) for e in examples} - set(labels))
    if labels and unknown:
        raise UserError(f"the data has the labels {unknown}, expected {labels}")
    convert = google_bert.run_classifier().convert_single_example
    rows = len(examples)
    arrays: dict[str, np.ndarray] = {
        name: np.zeros((rows, max_seq_length), np.int32)
        for name in ("input_ids", "input_mask", "segment_ids")
    }
    label_ids = np.zeros(rows, np.int32 if labels else np.float32)
    for row, example in enumerate(tqdm.tqdm(examples, desc="tokenizing", unit="ex")):
        feature = convert(row, example, labels or [example.label], max_seq_length, tokenizer)
        for name, array in arrays.items():
            array[row] = getattr(feature, name)
        label_ids[row] = feature.label_id if labels else float(example.label)
    return {**arrays, "label_ids": label_ids}
