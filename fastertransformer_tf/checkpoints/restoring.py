"""Google checkpoints, by variable name, as variables of an inference graph.

    with tf.Graph().as_default():
        with restored_variables("model.ckpt", "float16") as restored:
            ...build the model: each tf.compat.v1.get_variable gives a variable...
        with tf.compat.v1.Session() as session:
            restored.load(session)

Not constants, which would be part of the graph: TensorFlow holds and rewrites several copies of a
graph, and none may be larger than 2 GiB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from fastertransformer_tf.checkpoints.reading import Checkpoint
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.graphs import float_types
from fastertransformer_tf.graphs.variables import PendingValues

_tf1 = tf.compat.v1
# What training, calibration and quantization leave in a checkpoint beside the weights.
_TRAINING_STATE = re.compile(
    r"(^|/)(global_step|adam_[mv]|beta[12]_power|Adam(_1)?|quant_(max|min)|int8_format)$"
)


@dataclasses.dataclass
class Restored:
    """What `restored_variables` used of a checkpoint.

    Attributes:
      checkpoint: The checkpoint.
      used: Names of the variables that the graph has.
      problems: One sentence for each variable that could not be restored.
    """

    checkpoint: Checkpoint
    used: set[str] = dataclasses.field(default_factory=set)
    problems: list[str] = dataclasses.field(default_factory=list)
    _values: PendingValues = dataclasses.field(default_factory=PendingValues)

    def load(self, session: Any) -> None:
        """Fills the variables in a session of their graph, once; their values are then let go."""
        self._values.load(session)

    def unexpected(self) -> list[str]:
        """Returns the checkpoint's variables that the model has not, without training state."""
        rest = set(self.checkpoint.shapes) - self.used
        return sorted(name for name in rest if not _TRAINING_STATE.search(name))


def _static_shape(shape: Any) -> list[int]:
    """Turns any shape that get_variable takes into a list."""
    return tf.TensorShape(shape).as_list()


@contextlib.contextmanager
def restored_variables(
    checkpoint: Checkpoint | str | os.PathLike[str], dtype: str | tf.DType
) -> Iterator[Restored]:
    """Makes `tf.compat.v1.get_variable` give resource variables for a checkpoint's values.

    The values are read, cast and checked at once, in the block, and held until `Restored.load`.

    Args:
      checkpoint: The checkpoint or its prefix.
      dtype: Type that floating-point variables are cast to: float32, float16 or bfloat16. Those
        asked for as int8 are int8, and scale lists (`amaxList`) float32, whatever it is.

    Yields:
      What was used of it, with `load`, which fills the variables.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      UserError: At the end of the block, all at once: variables that the checkpoint lacks, has in
        another shape, or that overflow `dtype`.
    """
    dtype = float_types.float_type(dtype)
    restored = Restored(
        checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    )
    source = restored.checkpoint
    made: dict[str, Any] = {}
    missing: list[str] = []

    def get_restored(getter: Any, name: str, shape: Any = None, **options: Any) -> Any:
        if name in made:  # A reused variable.
            return made[name]
        expected = _static_shape(shape)
        stored = _stored_type(name, options.get("dtype"), dtype)
        problem = None
        if name not in source.shapes:
            missing.append(name)
            problem = f"{name} {expected} is missing"
        elif list(source.shapes[name]) != expected:
            problem = f"{name} has shape {list(source.shapes[name])}, expected {expected}"
        else:
            try:
                value = _load(source, name, stored)
            except ValueError as error:
                problem = str(error)
        if problem is not None:
            # Go on, to find every problem: the graph is refused at the end of the block.
            restored.problems.append(problem)
            made[name] = tf.zeros(expected, stored)  # Takes no memory before it is run.
            return made[name]
        restored.used.add(name)
        options |= {
            "dtype": stored,
            "initializer": _tf1.zeros_initializer(),
            "trainable": False,
            "use_resource": True,
        }
        made[name] = getter(name, shape, **options)
        restored._values.add(made[name], value)
        return made[name]

    with _tf1.variable_scope(_tf1.get_variable_scope(), custom_getter=get_restored):
        yield restored
    if restored.problems:
        raise UserError(
            f"checkpoint {source.path} does not fit the model, {len(restored.problems)} variables: "
            f"{listed(restored.problems)}{_hint(source, missing)}"
        )
    unexpected = restored.unexpected()
    if unexpected:
        logging.warning(
            "checkpoint %s has %d variables that the model has not: %s",
            source.path,
            len(unexpected),
            listed(unexpected),
        )


def _stored_type(name: str, asked: Any, dtype: tf.DType) -> tf.DType:
    """The type of a variable that a graph asks for: int8 as asked, scale lists float32."""
    if asked is not None and tf.as_dtype(asked) == tf.int8:
        return tf.int8
    return tf.float32 if name.endswith("/amaxList") else dtype


def _load(source: Checkpoint, name: str, dtype: tf.DType) -> np.ndarray:
    """Reads a variable in a type.

    Raises:
      UserError: It cannot be had in that type.
    """
    stored = source.dtypes[name]
    if dtype == tf.int8:
        if stored != tf.int8:
            raise UserError(f"{name} is {stored.name}, expected int8: ckpt_quantization makes it")
        return source.load(name)
    if stored == tf.int8:
        raise UserError(f"{name} is int8, expected floating point: the checkpoint is quantized")
    return source.load(name, dtype)


def _hint(source: Checkpoint, missing: list[str]) -> str:
    """Says why variables may be missing: another scope, another head, none."""
    if missing and all(re.search(r"(^|/)output_(weights|bias)$", name) for name in missing):
        heads = sorted(name for name in source.shapes if name.endswith("output_weights"))
        has = f"its head is of another kind, {', '.join(heads)}" if heads else "it has no head"
        return f" ({has}: fine-tune it with --do_train first)"
    for name in missing:
        scope = next((have for have in source.shapes if have.endswith(f"/{name}")), None)
        if scope:
            return f" (the checkpoint has {scope}: the model is in another variable scope)"
    if missing and not any(name.startswith("bert/") for name in source.shapes):
        return f" (it has no bert/..., but such as {', '.join(sorted(source.shapes)[:3])})"
    return ""
