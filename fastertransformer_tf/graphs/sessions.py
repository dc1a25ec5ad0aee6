"""The configuration of every TensorFlow session of this package."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def session_config() -> Any:
    """Makes the ConfigProto of a session that takes a GPU's memory as it is needed.

    TF_FORCE_GPU_ALLOW_GROWTH=false, which TensorFlow itself reads, takes all of it at once.
    """
    config = tf.compat.v1.ConfigProto()
    config.gpu_options.allow_growth = True
    return config
