"""Runs a function over data, or in several threads, and times it. Free of TensorFlow."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tqdm


@dataclasses.dataclass
class BatchRun:
    """Result of `run_batches`.

    Attributes:
      outputs: Name to all examples' values, [examples, ...]; of a fetch without a batch axis
        [batches].
      num_examples: Examples run.
      batch_seconds: Time of each batch, [batches], seconds.
    """

    outputs: dict[str, np.ndarray]
    num_examples: int
    batch_seconds: np.ndarray

    @property
    def examples_per_second(self) -> float:
        """Examples a second over all timed batches."""
        return self.num_examples / float(self.batch_seconds.sum())

    @property
    def ms_per_batch(self) -> float:
        """Median milliseconds a batch."""
        return float(np.median(self.batch_seconds)) * 1e3


def run_batches(
    function: Callable[..., Mapping[str, np.ndarray]],
    values: Sequence[np.ndarray],
    batch_size: int,
    description: str,
) -> BatchRun:
    """Runs a function over data, batch by batch, with a progress bar on stderr.

    The first batch runs twice: once unmeasured, then as every other. The last batch may be smaller
    than the others.

    Args:
      function: Takes a batch of each of `values` and returns its outputs by name.
      values: All examples' values, [examples, ...] each.
      batch_size: Examples a batch, at least 1.
      description: Of the progress bar.

    Raises:
      ValueError: batch_size below 1, no example, or values of different lengths.
    """
    counts = {len(value) for value in values}
    if batch_size < 1 or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"batch size is {batch_size} and the inputs have {sorted(counts)} examples, expected "
            "at least 1 and one number above 0"
        )
    (num_examples,) = counts
    function(*(value[:batch_size] for value in values))
    results: list[Mapping[str, np.ndarray]] = []
    seconds = []
    with tqdm.tqdm(total=num_examples, desc=description, unit="ex", file=sys.stderr) as bar:
        for begin in range(0, num_examples, batch_size):
            batch = [value[begin : begin + batch_size] for value in values]
            start = time.perf_counter()
            results.append(function(*batch))
            seconds.append(time.perf_counter() - start)
            bar.update(len(batch[0]))
    outputs = {}
    for name in results[0]:
        parts = [np.asarray(result[name]) for result in results]
        outputs[name] = np.concatenate(parts) if parts[0].ndim else np.stack(parts)
    return BatchRun(outputs, num_examples, np.array(seconds))


def seconds_in_threads(work: Callable[[], object], threads: int) -> float:
    """Runs a function in several threads at once.

    Args:
      work: What each thread calls once.
      threads: How many, at least 1.

    Returns:
      Seconds from the start of the first to the end of the last.

    Raises:
      Exception: The first that `work` raised, once all threads have ended.
    """
    failures: list[Exception] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 (raised again below)
            failures.append(error)

    workers = [threading.Thread(target=guarded) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    if failures:
        raise failures[0]
    return seconds
