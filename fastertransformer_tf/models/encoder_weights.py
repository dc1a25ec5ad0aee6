"""The weights of an encoder as arrays: read from a checkpoint, or random."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from fastertransformer_tf import spec
from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.quantization import points, scale_list
from fastertransformer_tf.spec import EncoderSizes

# By layer, keyed by google's names: arrays, or tensors of a graph.
Weights = list[dict[str, np.ndarray]] | list[dict[str, tf.Tensor]]


def random_weights(sizes: EncoderSizes, seed: int = 1) -> Weights:
    """Makes `spec.random_layers` by google's names."""
    rng = np.random.default_rng(seed)
    layers = spec.random_layers(rng, sizes.layers, sizes.hidden, sizes.inner)
    return spec.by_google_name(layers)


def load_weights(
    prefix: str, sizes: EncoderSizes, *, int8: bool = False, scope: str = "bert/encoder"
) -> Weights:
    """Reads the encoder's weights from a google-research BERT checkpoint, as float32.

    Args:
      prefix: The checkpoint.
      sizes: Of the encoder.
      int8: It is one of ckpt_quantization: kernels are int8, and each layer has its scale list.
      scope: Above the layers.

    Raises:
      FileNotFoundError: There is no such checkpoint.
      UserError: It cannot be read, or variables are missing or have another shape or type: the
        first ten are named.
    """
    source = reading.Checkpoint(prefix)
    faults = []
    layers: list[dict[str, np.ndarray]] = [{} for _ in range(sizes.layers)]
    names = {w.google: w.sizes(sizes.hidden, sizes.inner) for w in spec.LAYER_WEIGHTS}
    kernels = {w.google for w in spec.LAYER_WEIGHTS if w.is_quantized and int8}
    if int8:
        names[points.SCALE_LIST] = (scale_list.length(sizes.hidden, sizes.inner),)
    for index, layer in enumerate(layers):
        for name, expected in names.items():
            full = f"{scope}/layer_{index}/{name}"
            if full not in source.shapes:
                faults.append(f"{full} is missing")
            elif tuple(source.shapes[full]) != expected:
                faults.append(f"{full} has shape {source.shapes[full]}, expected {list(expected)}")
            elif (source.dtypes[full] == tf.int8) != (name in kernels):
                wanted = "int8" if name in kernels else "floating point"
                faults.append(f"{full} is {source.dtypes[full].name}, expected {wanted}")
            else:
                layer[name] = source.load(full, None if name in kernels else "float32")
    if faults:
        raise UserError(f"checkpoint {prefix} does not fit the encoder: {listed(faults)}")
    return layers
