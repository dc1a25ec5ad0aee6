"""Reads google's checkpoints, one variable at a time, and finds the one that a path means."""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re

import numpy as np
import tensorflow as tf

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import paths

# The three kinds of files of a checkpoint, and what training names its checkpoints.
_FILE_SUFFIX = re.compile(r"\.(index|meta|data-\d{5}-of-(\d{5}))$")
_TRAINED = re.compile(r"model\.ckpt-\d+\.(index|data-\d{5}-of-\d{5})$")
# The variable in which tf.train.Checkpoint and Keras keep what the others belong to.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Checkpoint:
    """A name-based TensorFlow checkpoint, read one variable at a time.

    Attributes:
      path: Its prefix, e.g. `out/model.ckpt-100`.
      shapes: Variable name to shape.
      dtypes: Variable name to type.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the checkpoint.

        Args:
          path: Its prefix, or a folder; see `prefix_of`.

        Raises:
          OSError: There is none of that name, or it may not be read.
          UserError: `path` names something else, or the checkpoint is damaged or object-based.
        """
        self.path = prefix_of(path)
        try:
            self._reader = tf.train.load_checkpoint(self.path)
            self.shapes: dict[str, list[int]] = self._reader.get_variable_to_shape_map()
            self.dtypes: dict[str, tf.DType] = self._reader.get_variable_to_dtype_map()
        # TensorFlow raises each of them for some kind of damage; an index asks for little memory.
        except (
            tf.errors.OpError, RuntimeError, ValueError, TypeError, IndexError, MemoryError
        ) as error:  # fmt: skip
            raise self._unreadable(error) from error
        if _OBJECT_GRAPH in self.shapes:
            raise UserError(
                f"checkpoint {self.path} is object-based (tf.train.Checkpoint or Keras), expected "
                "a name-based one, such as tf.compat.v1.train.Saver and google's programs write"
            )

        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuses an index that says more than the data files hold.

        TensorFlow would ask for that memory before it finds out.
        """
        held = sum(map(os.path.getsize, glob.glob(f"{glob.escape(self.path)}.data-*")))
        for name, shape in self.shapes.items():
            size = math.prod(shape) * self.dtypes[name].size
            if size > held:
                error = ValueError(f"{size} bytes, but its files have {held}")
                raise self._unreadable(error, name)

    def _unreadable(self, error: Exception, name: str = "") -> UserError:
        text = getattr(error, "message", None) or str(error) or type(error).__name__
        about = f"{name}: " if name else ""
        return UserError(f"checkpoint {self.path} is damaged or incomplete: {about}{text}")

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
        except (tf.errors.OpError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise self._unreadable(error, name) from error
        except MemoryError as error:  # Of a text its files say how long it is.
            raise UserError(
                f"checkpoint {self.path} is damaged, or memory does not suffice for {name}"
            ) from error
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
        if self.shapes.get("global_step") != [] or not self.dtypes["global_step"].is_integer:
            return 0
        return int(self.load("global_step"))

    def content_hash(self) -> str:
        """Returns the SHA-256, in hexadecimal, of all names, types, shapes and values."""
        digest = hashlib.sha256()
        for name in sorted(self.shapes):
            described = f"{name}\0{self.dtypes[name].name}\0{self.shapes[name]}\0"
            digest.update(described.encode())
            value = self.load(name)
            if value.dtype == object:  # Strings.
                digest.update(repr(value.tolist()).encode())
            else:
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()


def prefix_of(path: str | os.PathLike[str]) -> str:
    """Returns the prefix of the checkpoint that `path` means.

    Args:
      path: A prefix; or a folder, which means the latest checkpoint by its file `checkpoint`, as
        for google's programs, or, without that file, the only one in it.

    Raises:
      FileNotFoundError: There is none.
      UserError: `path` is one of its files, a URL, or a folder of several; or files are missing.
    """
    path = os.fspath(path)
    paths.refuse_url(path, "init_checkpoint")
    if os.path.isfile(f"{path}.index"):
        paths.refuse_pattern(path)
        _check_data_files(path)
        return path
    if os.path.isdir(path):
        paths.refuse_pattern(path)
        prefix = _prefix_in(path)
        _check_data_files(prefix)
        return prefix
    suffix = _FILE_SUFFIX.search(path)
    if suffix and os.path.isfile(f"{path[: suffix.start()]}.index"):
        raise UserError(
            f"{path} is one file of a checkpoint, expected what the names of its files begin with: "
            f"{path[: suffix.start()]}"
        )
    raise FileNotFoundError(
        f"checkpoint {path} not found, expected {path}.index and its .data files"
    )


def _prefix_in(folder: str) -> str:
    """Returns the prefix of the checkpoint that a folder means; see `prefix_of`."""
    names = os.listdir(folder)
    if "checkpoint" in names:
        latest = latest_in(folder)
        assert latest is not None  # Else it says what is wrong with the file.
        return latest
    found = sorted(name.removesuffix(".index") for name in names if name.endswith(".index"))
    if not found:
        raise FileNotFoundError(
            f"the folder {folder} has no checkpoint, expected one with its .index and .data files"
        )
    if len(found) > 1:
        raise UserError(
            f"the folder {folder} has {len(found)} checkpoints and no file `checkpoint` that tells "
            f"the latest: {listed(found)}: give one of them, as {os.path.join(folder, found[0])}"
        )
    return os.path.join(folder, found[0])


def _check_data_files(prefix: str) -> None:
    """Refuses a checkpoint that lacks files beside its index."""
    files = glob.glob(f"{glob.escape(prefix)}.data-*")
    shards = [match[2] for file in files if (match := _FILE_SUFFIX.search(file))]
    if not shards or all(shards.count(shard) < int(shard) for shard in shards):
        raise UserError(
            f"checkpoint {prefix} is incomplete: beside {prefix}.index there are "
            f"{len(shards) or 'no'} .data files, expected {int(shards[0]) if shards else 'some'}"
        )


def latest_in(folder: str | os.PathLike[str]) -> str | None:
    """Returns the prefix of the latest checkpoint in a folder, by its file `checkpoint`.

    That file may hold absolute paths (TensorFlow's default) and the folder may have been moved,
    copied or renamed since: of a path in another folder the checkpoint of that name here is meant.

    Returns:
      The prefix, or None where the folder holds no checkpoint of a training.

    Raises:
      UserError: It holds checkpoints of a training, but `checkpoint` is missing, damaged or names
        one that is not there.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        return None
    state = tf.train.get_checkpoint_state(folder)
    if state is not None:
        name = os.path.basename(state.model_checkpoint_path)
        if os.path.isfile(os.path.join(folder, f"{name}.index")):
            return os.path.join(folder, name)
        problem = f"its file `checkpoint` names {name!r}, which is not there"
    else:
        problem = "its file `checkpoint`, which names the latest, is missing or damaged"
    names = os.listdir(folder)
    if "checkpoint" in names or any(_TRAINED.match(name) for name in names):
        raise UserError(
            f"{folder} holds a training, but {problem}: restore it, or give another folder"
        )
    return None


def choose_checkpoint(init_checkpoint: str | None, output_dir: str) -> str:
    """Returns the checkpoint to run and says which: the one trained in `output_dir`, if there is.

    As google's Estimator: once a training has saved one there, --init_checkpoint is only what it
    started from.

    Raises:
      FileNotFoundError: Neither is there.
      UserError: `output_dir` holds a training whose latest checkpoint cannot be told.
    """
    latest = latest_in(output_dir)
    if latest is not None:
        instead = ", instead of --init_checkpoint" if init_checkpoint else ""
        print(f"checkpoint: {latest} (the latest trained in --output_dir{instead})")
        return latest
    if not init_checkpoint:
        raise FileNotFoundError(
            f"no checkpoint: --init_checkpoint is not given and --output_dir={output_dir} has none"
        )
    print(f"checkpoint: {init_checkpoint} (--init_checkpoint)")
    return init_checkpoint
