"""Google checkpoints, by variable name, as constants of an inference graph.

    with tf.Graph().as_default(), restored_constants("model.ckpt", "float16") as restored:
        ...build the model: each tf.compat.v1.get_variable gives a constant...

Constants tell the op that its weights never change, so that it packs them once, and let TensorFlow
fold what depends on them alone.
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

from fastertransformer_tf import bert_compat
from fastertransformer_tf.errors import UserError

_tf1 = tf.compat.v1

# A GraphDef is one protocol buffer: less than 2 GiB, of which the nodes take a little.
MAX_CONSTANT_BYTES = 2**31 - 2**24

# What training leaves in a checkpoint beside the weights.
_TRAINING_STATE = re.compile(r"(^|/)(global_step|adam_[mv]|beta[12]_power|Adam(_1)?)$")


class Checkpoint:
    """A name-based TensorFlow checkpoint, read one variable at a time.

    Attributes:
      path: Its prefix, e.g. `out/model.ckpt-100`.
      shapes: Variable name to shape.
      dtypes: Variable name to type.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the checkpoint.

        Raises:
          FileNotFoundError: There is none of that name.
          UserError: It cannot be read.
        """
        self.path = os.fspath(path)
        if not tf.io.gfile.exists(self.path + ".index"):
            raise FileNotFoundError(
                f"checkpoint {self.path} not found, expected {self.path}.index and its .data files"
            )
        try:
            self._reader = tf.train.load_checkpoint(self.path)
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise UserError(f"checkpoint {self.path} cannot be read: {error}") from error
        self.shapes: dict[str, list[int]] = self._reader.get_variable_to_shape_map()
        self.dtypes: dict[str, tf.DType] = self._reader.get_variable_to_dtype_map()

    def load(self, name: str, dtype: str | tf.DType | None = None) -> np.ndarray:
        """Reads a variable.

        Args:
          name: Its name, without ":0".
          dtype: Type of a floating-point variable, to cast it to; as it is stored when None.

        Raises:
          UserError: A damaged or missing data file; with `dtype` also a variable of another kind,
            or a value that is not finite or overflows the type.
        """
        try:
            value = self._reader.get_tensor(name)
        # TensorFlow raises each of them for some kind of damage.
        except (tf.errors.OpError, IndexError, RuntimeError) as error:
            raise UserError(f"checkpoint {self.path} cannot be read: {name}: {error}") from error
        if dtype is None:
            return value
        if not self.dtypes[name].is_floating:
            raise UserError(f"{name} is {self.dtypes[name].name}, expected floating point")
        unusable = int(np.sum(~np.isfinite(value)))
        if unusable:  # Packed int8 bytes read as floats are such, too.
            raise UserError(
                f"{name} has {unusable} values that are not finite: the checkpoint is quantized or "
                "its training failed"
            )
        if self.dtypes[name] == tf.as_dtype(dtype):
            return value
        with np.errstate(over="ignore"):
            cast = value.astype(tf.as_dtype(dtype).as_numpy_dtype)
        overflowed = int(np.sum(~np.isfinite(cast.astype(np.float32))))
        if overflowed:
            raise UserError(
                f"{name} has {overflowed} values that overflow {tf.as_dtype(dtype).name}, the "
                f"largest {np.abs(value.astype(np.float64)).max():.6g}"
            )
        return cast

    def global_step(self) -> int:
        """Returns the training step that the checkpoint was saved at; 0 where it has none."""
        return int(self.load("global_step")) if "global_step" in self.shapes else 0


@dataclasses.dataclass
class Restored:
    """What `restored_constants` used of a checkpoint.

    Attributes:
      checkpoint: The checkpoint.
      used: Names of the variables that became constants.
      problems: One sentence for each variable that could not.
      num_bytes: Size of all constants.
    """

    checkpoint: Checkpoint
    used: set[str] = dataclasses.field(default_factory=set)
    problems: list[str] = dataclasses.field(default_factory=list)
    num_bytes: int = 0

    def unexpected(self) -> list[str]:
        """Returns the checkpoint's variables that the model has not, without training state."""
        rest = set(self.checkpoint.shapes) - self.used
        return sorted(name for name in rest if not _TRAINING_STATE.search(name))


def _static_shape(shape: Any) -> list[int]:
    """Turns any shape that get_variable takes into a list."""
    return tf.TensorShape(shape).as_list()


@contextlib.contextmanager
def restored_constants(
    checkpoint: Checkpoint | str | os.PathLike[str], dtype: str | tf.DType
) -> Iterator[Restored]:
    """Makes `tf.compat.v1.get_variable` give constants from a checkpoint inside the block.

    Args:
      checkpoint: The checkpoint or its prefix.
      dtype: Type that floating-point variables are cast to: float32, float16 or bfloat16.

    Yields:
      What was used of it.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      UserError: At the end of the block, all at once: variables that the checkpoint lacks, has in
        another shape, or that overflow `dtype`. At once: constants too large for one graph.
    """
    dtype = bert_compat.float_type(dtype)
    restored = Restored(
        checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    )
    source = restored.checkpoint
    constants: dict[str, tf.Tensor] = {}

    def get_constant(getter: Any, name: str, shape: Any = None, **unused: Any) -> tf.Tensor:
        if name in constants:  # A reused variable.
            return constants[name]
        expected = _static_shape(shape)
        problem = None
        if name not in source.shapes:
            problem = f"{name} {expected} is missing"
        elif list(source.shapes[name]) != expected:
            problem = f"{name} has shape {list(source.shapes[name])}, expected {expected}"
        else:
            try:
                value = source.load(name, dtype)
            except ValueError as error:
                problem = str(error)
        if problem is not None:
            # Go on, to find every problem: the graph is refused at the end of the block.
            restored.problems.append(problem)
            value = np.zeros(expected, dtype.as_numpy_dtype)
        restored.used.add(name)
        restored.num_bytes += value.nbytes
        if restored.num_bytes > MAX_CONSTANT_BYTES:
            raise UserError(
                f"the weights of {source.path} in {dtype.name} pass {MAX_CONSTANT_BYTES} bytes, "
                "what one frozen TensorFlow graph can hold: use float16 or bfloat16, or keep them "
                "as variables"
            )
        constants[name] = tf.constant(value, name=name.replace("/", "_"))
        return constants[name]

    with _tf1.variable_scope(_tf1.get_variable_scope(), custom_getter=get_constant):
        yield restored
    if restored.problems:
        raise UserError(
            f"checkpoint {source.path} does not fit the model, {len(restored.problems)} variables: "
            + "; ".join(restored.problems)
        )
    unexpected = restored.unexpected()
    if unexpected:
        logging.warning(
            "checkpoint %s has %d variables that the model has not: %s",
            source.path,
            len(unexpected),
            ", ".join(unexpected),
        )


def choose_checkpoint(init_checkpoint: str | None, output_dir: str) -> str:
    """Returns the checkpoint to run: the one that is named, else the latest in `output_dir`.

    Raises:
      FileNotFoundError: Neither is there.
    """
    if init_checkpoint:
        return init_checkpoint
    latest = tf.train.latest_checkpoint(output_dir)
    if not latest:
        raise FileNotFoundError(
            f"no checkpoint: --init_checkpoint is not given and --output_dir={output_dir} has none"
        )
    return latest
