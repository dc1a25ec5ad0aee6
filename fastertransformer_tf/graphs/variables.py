"""Resource variables, and their values while no session holds them yet.

A TensorFlow 1 graph makes reference variables where nobody asks for others. Assigning one writes
into its buffer, so the op could not trust weights that it has prepared, and would prepare them in
every call: all variables of this package are resource variables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

_tf1 = tf.compat.v1


def get_variable(name: str, shape: Any = None, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`tf.compat.v1.get_variable`, but of a resource variable."""
    kwargs["use_resource"] = True
    return _tf1.get_variable(name, shape, dtype, *args, **kwargs)


class PendingValues:
    """Values of a graph's variables, which wait for the session that is to hold them."""

    def __init__(self) -> None:
        """There are none yet."""
        self._values: list[tuple[Any, np.ndarray]] = []

    def add(self, variable: Any, value: np.ndarray) -> None:
        """Gives a variable of the default graph a value, which has its type and shape."""
        self._values.append((variable.initializer, value))

    def load(self, session: Any) -> None:
        """Puts the values added since the last call into the session, and lets go of each."""
        self._values.reverse()
        # One by one, so that no two copies of all exist.
        while self._values:
            initializer, value = self._values.pop()
            session.run(initializer, {initializer.inputs[1]: value})
