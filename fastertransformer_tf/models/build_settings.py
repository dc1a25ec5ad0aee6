"""What bert.modeling leaves to its global state: type, epsilon and dropout of what is built.

Each holds inside a `with` block, in its thread.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator

import tensorflow as tf

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.graphs import float_types

_state = threading.local()


@contextlib.contextmanager
def floatx(dtype: str | tf.DType) -> Iterator[None]:
    """Makes `bert.modeling` build variables, masks and embeddings in a type, in this thread.

    Args:
      dtype: float32, float16 or bfloat16, a name or a type.

    Raises:
      UserError: Another type.
    """
    previous = current_floatx()
    _state.floatx = float_types.float_type(dtype)
    try:
        yield
    finally:
        _state.floatx = previous


def current_floatx() -> tf.DType:
    """Returns the type that `floatx` set in this thread; float32 outside of it."""
    return getattr(_state, "floatx", tf.float32)


@contextlib.contextmanager
def layer_norm_epsilon(epsilon: float) -> Iterator[None]:
    """Sets the epsilon of every layer norm built in the block, in this thread.

    `BertModel` sets it to its configuration's `layer_norm_eps` where there is one.

    Raises:
      UserError: It is not above 0.
    """
    if not epsilon > 0:
        raise UserError(f"layer_norm_eps is {epsilon!r}, expected a number above 0")
    previous = current_layer_norm_epsilon()
    _state.layer_norm_epsilon = epsilon
    try:
        yield
    finally:
        _state.layer_norm_epsilon = previous


def current_layer_norm_epsilon() -> float:
    """Returns the epsilon set in this thread; google-research BERT's 1e-12 outside of any block."""
    return getattr(_state, "layer_norm_epsilon", 1e-12)


@contextlib.contextmanager
def dropout_seed(seed: int, step: tf.Tensor) -> Iterator[None]:
    """Makes every dropout built in the block, in this thread, a function of seed and step.

    Random operations with a state of their own begin anew when a session does: a training that was
    killed and resumed would then drop other values than one that was not.

    Args:
      seed: Of the whole training.
      step: int64 []; each of its values gives other random values.
    """
    previous = getattr(_state, "dropout", None)
    # Threefry takes two 64-bit numbers. The low half of the first counts the dropouts of the graph.
    _state.dropout = (itertools.count(seed << 32), step)
    try:
        yield
    finally:
        _state.dropout = previous


def current_dropout() -> tuple[Iterator[int], tf.Tensor] | None:
    """Returns what `dropout_seed` set in this thread: numbers of dropouts to come, and the step."""
    return getattr(_state, "dropout", None)
