"""Runs a model over data, batch by batch, and times it."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tqdm

from fastertransformer_tf.checkpoints import restoring
from fastertransformer_tf.files import atomic
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.programs import path_flags

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self


_tf1 = tf.compat.v1


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


class Model:
    """A model restored from a checkpoint, in a session of its own; a context manager.

    Attributes:
      graph: Holds it.
      inputs: Name to placeholder; batch size and length are unknown.
      outputs: Name to tensor.
      session: Runs the graph.
    """

    def __init__(
        self,
        graph: tf.Graph,
        inputs: Mapping[str, tf.Tensor],
        outputs: Mapping[str, tf.Tensor],
        restored: restoring.Restored,
        config: Any = None,
    ) -> None:
        """Starts a session and loads the weights.

        Args:
          graph: The whole model.
          inputs: Name to placeholder.
          outputs: Name to tensor.
          restored: All variables of the graph.
          config: A ConfigProto; that of `sessions.session_config` when None.
        """
        self.graph, self.inputs, self.outputs = graph, dict(inputs), dict(outputs)
        self.session = _tf1.Session(graph=graph, config=config or sessions.session_config())
        restored.load(self.session)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Closes the session."""
        self.session.close()

    def run(
        self, features: Mapping[str, np.ndarray], batch_size: int, description: str
    ) -> BatchRun:
        """Runs the model over arrays [examples,...], one for each input; see `run_batches`."""
        feeds = {placeholder: features[name] for name, placeholder in self.inputs.items()}
        return run_batches(self.session, self.outputs, feeds, batch_size, description)

    def export(self, path: str, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Writes a SavedModel, weights in `variables/`, with the signature `serving_default`.

        Args:
          path: A new folder; it appears when it is complete.
          inputs: Names of the signature's inputs.
          outputs: Names of its outputs, which need no other input.

        Raises:
          UserError: The folder is there already.
        """
        path_flags.check_export_dir(path)
        saved = _tf1.saved_model
        # Atomic like a file's: the rename moves the whole folder.
        with atomic.atomic_path(path) as temporary, self.graph.as_default():
            signature = saved.predict_signature_def(
                {name: self.inputs[name] for name in inputs},
                {name: self.outputs[name] for name in outputs},
            )
            builder = saved.Builder(str(temporary))
            builder.add_meta_graph_and_variables(
                self.session,
                [saved.tag_constants.SERVING],
                {saved.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature},
            )
            builder.save()
        print(f"exported: {path}")


def run_batches(
    session: Any,
    fetches: Mapping[str, tf.Tensor],
    feeds: Mapping[tf.Tensor, np.ndarray],
    batch_size: int,
    description: str,
) -> BatchRun:
    """Runs a graph over data, batch by batch, with a progress bar on stderr.

    The first batch runs twice: once unmeasured, which optimises the graph and packs the weights,
    then as every other. The last batch may be smaller than the others.

    Args:
      session: A tf.compat.v1.Session with a graph whose batch axis is unknown.
      fetches: Name to tensor.
      feeds: Placeholder to all examples' values, [examples, ...] each.
      batch_size: Examples a batch, at least 1.
      description: Of the progress bar.

    Raises:
      ValueError: batch_size below 1, no example, or feeds of different lengths.
    """
    counts = {len(values) for values in feeds.values()}
    if batch_size < 1 or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"batch size is {batch_size} and the inputs have {sorted(counts)} examples, expected "
            "at least 1 and one number above 0"
        )
    (num_examples,) = counts
    callable_ = session.make_callable(dict(fetches), feed_list=list(feeds))
    values = list(feeds.values())
    callable_(*(v[:batch_size] for v in values))
    results: list[dict[str, np.ndarray]] = []
    seconds = []
    with tqdm.tqdm(total=num_examples, desc=description, unit="ex", file=sys.stderr) as bar:
        for begin in range(0, num_examples, batch_size):
            batch = [v[begin : begin + batch_size] for v in values]
            start = time.perf_counter()
            results.append(callable_(*batch))
            seconds.append(time.perf_counter() - start)
            bar.update(len(batch[0]))
    outputs = {}
    for name in fetches:
        parts = [np.asarray(result[name]) for result in results]
        outputs[name] = np.concatenate(parts) if parts[0].ndim else np.stack(parts)
    return BatchRun(outputs, num_examples, np.array(seconds))
