"""The floating-point types of models, as TensorFlow's."""

from __future__ import annotations

import tensorflow as tf

from fastertransformer_tf import spec
from fastertransformer_tf.errors import UserError


def float_type(dtype: str | tf.DType) -> tf.DType:
    """Returns the TensorFlow type of a name or type.

    Raises:
      UserError: Not float32, float16 or bfloat16.
    """
    name = dtype.name if isinstance(dtype, tf.DType) else dtype
    if name not in spec.FLOAT_TYPES:
        raise UserError(f"floatx is {name!r}, expected one of {', '.join(spec.FLOAT_TYPES)}")
    return tf.as_dtype(name)
