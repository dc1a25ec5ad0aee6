"""Runs a model over data, batch by batch, and times it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from fastertransformer_tf.checkpoints import restoring
from fastertransformer_tf.files import atomic
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.programs import batch_runs, path_flags

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self


_tf1 = tf.compat.v1


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
    ) -> batch_runs.BatchRun:
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
) -> batch_runs.BatchRun:
    """Runs a graph over data, batch by batch; see `batch_runs.run_batches`.

    The first call, which is not measured, optimises the graph and packs the weights.

    Args:
      session: A tf.compat.v1.Session with a graph whose batch axis is unknown.
      fetches: Name to tensor.
      feeds: Placeholder to all examples' values, [examples, ...] each.
      batch_size: Examples a batch, at least 1.
      description: Of the progress bar.
    """
    function = session.make_callable(dict(fetches), feed_list=list(feeds))
    return batch_runs.run_batches(function, list(feeds.values()), batch_size, description)
