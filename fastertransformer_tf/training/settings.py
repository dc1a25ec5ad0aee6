"""What changes the result of a training, as training.json keeps it, and how it is compared."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import text_files
from fastertransformer_tf.training.batches import num_rows
from fastertransformer_tf.training.options import TrainingOptions

# Attributes of TrainingOptions that change no weight.
_NO_MATTER = frozenset({"save_checkpoints_steps", "keep_checkpoints"})
STEPS, WARMUP = "num_train_steps", "num_warmup_steps"


def compare_settings(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses other settings, except more steps."""
    same = dict(old)
    with contextlib.suppress(TypeError, KeyError):  # A damaged file may hold anything.
        if new[STEPS] > old[STEPS]:
            same |= {name: new[name] for name in (STEPS, WARMUP)}
    differing = [
        f"{name} {text_files.describe(old.get(name))} (now {text_files.describe(new.get(name))})"
        for name in sorted(same.keys() | new.keys())
        if same.get(name) != new.get(name)
    ]
    if differing:
        raise UserError(
            f"{folder} holds a training with {listed(differing)}: give another output_dir or the "
            "same settings"
        )


def content_hash(*parts: bytes | np.ndarray) -> str:
    """Returns a hash of contents, short enough for a message."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def file_hash(path: str | os.PathLike[str]) -> str:
    """Returns the `content_hash` of a file."""
    return content_hash(Path(path).read_bytes())


def all_settings(
    features: Mapping[str, np.ndarray],
    options: TrainingOptions,
    source: reading.Checkpoint | None,
    others: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that changes the result of a training; switches only where they are on.

    So a training goes on under a version of this package that has more switches.
    """
    arrays = [part for name in sorted(features) for part in (name.encode(), features[name])]
    counting = {name: value for name, value in asdict(options).items() if value is not False}
    return {
        **{name: value for name, value in counting.items() if name not in _NO_MATTER},
        "num_examples": num_rows(features),
        "features": content_hash(*arrays),
        "init_checkpoint": None if source is None else f"sha256:{source.content_hash()[:16]}",
        **others,
    }
