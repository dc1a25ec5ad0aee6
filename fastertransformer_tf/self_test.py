"""Tests an installation by `python -m fastertransformer_tf.self_test`.

The encoder in every type and the ops that remove and rebuild padding, on the CPU and on each GPU
that TensorFlow has, against the same computed by TensorFlow's basic operations in float64. Needs
TensorFlow and NumPy alone. Prints a line for each case; the exit code is 1 if one failed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from fastertransformer_tf import __version__, ops, spec

# Two layers of two heads, with lengths from none to all.
_SIZES = spec.EncoderSizes(layers=2, heads=2, size=32, inner=256)
_LENGTHS = np.array([48, 1, 0, 33], np.int32)
# Largest difference of a hidden state, whose spread is 1.
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}


def _layer_norm(x: tf.Tensor, beta: tf.Tensor, gamma: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return (x - mean) / tf.sqrt(variance + spec.GOOGLE_LAYER_NORM_EPS) * gamma + beta


def _layer(x: tf.Tensor, weights: Mapping[str, tf.Tensor], keys: tf.Tensor) -> tf.Tensor:
    """One layer in float64: x [B,S,H], keys [B,S], 1 where a key counts."""

    def dense(value: tf.Tensor, name: str) -> tf.Tensor:
        return tf.tensordot(value, weights[f"{name}_kernel"], 1) + weights[f"{name}_bias"]

    def heads(value: tf.Tensor) -> tf.Tensor:
        split = tf.reshape(value, [*x.shape[:2], _SIZES.heads, _SIZES.size])
        return tf.transpose(split, [0, 2, 1, 3])

    q, k, v = (heads(dense(x, f"attr_{letter}")) for letter in "qkv")
    scores = tf.matmul(q, k, transpose_b=True) / np.sqrt(float(_SIZES.size))
    scores += (1 - keys[:, tf.newaxis, tf.newaxis]) * -10000.0
    context = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), [0, 2, 1, 3])
    attended = dense(tf.reshape(context, x.shape), "attr_output") + x
    norm = "attr_output_layernorm"
    attended = _layer_norm(attended, weights[f"{norm}_beta"], weights[f"{norm}_gamma"])
    inner = tf.nn.gelu(dense(attended, "inter"), approximate=True)
    output = dense(inner, "output") + attended
    return _layer_norm(output, weights["output_layernorm_beta"], weights["output_layernorm_gamma"])


def _cases() -> Iterator[tuple[str, str, float]]:
    """Device, case and the largest difference over its tolerance."""
    devices = ["/CPU:0", *(gpu.name for gpu in tf.config.list_logical_devices("GPU"))]
    rng = np.random.default_rng(1)
    seq = int(_LENGTHS.max())
    hidden = rng.standard_normal((len(_LENGTHS), seq, _SIZES.hidden), dtype=np.float32)
    layers = spec.random_layers(rng, _SIZES.layers, _SIZES.hidden, _SIZES.inner)
    keys = np.arange(seq) < _LENGTHS[:, np.newaxis]
    for dtype, tolerance in _TOLERANCE.items():
        with tf.device("/CPU:0"):
            states = tf.cast(hidden, dtype)
            weights = [{name: tf.cast(w, dtype) for name, w in one.items()} for one in layers]
            expected = tf.cast(states, tf.float64)
            for one in weights:
                exact = {name: tf.cast(w, tf.float64) for name, w in one.items()}
                expected = _layer(expected, exact, tf.cast(keys, tf.float64))
        for device in devices:
            for remove_padding in (False, True):
                with tf.device(device):
                    (found,) = ops.bert_encoder(
                        tf.identity(states),
                        _LENGTHS,
                        None,
                        [{name: tf.identity(w) for name, w in one.items()} for one in weights],
                        head_num=_SIZES.heads,
                        size_per_head=_SIZES.size,
                        remove_padding=remove_padding,
                    )
                difference = np.abs(tf.cast(found, tf.float64).numpy() - expected.numpy())[keys]
                name = f"BertEncoder {dtype}, padding {'removed' if remove_padding else 'computed'}"
                # NaN counts as infinite.
                worst = np.nan_to_num(difference, nan=np.inf).max()
                yield device, name, float(worst) / tolerance
    for device in devices:
        with tf.device(device):
            packed = ops.build_mask_remove_padding(hidden, _LENGTHS)
            mask = tf.zeros([len(_LENGTHS), 1, seq, seq])
            rebuilt = ops.rebuild_padding(packed.output, packed.sequence_id_offset, mask)
        same = np.array_equal(rebuilt.numpy(), hidden * keys[:, :, np.newaxis])
        yield device, "padding removed and rebuilt", 0.0 if same else np.inf


def main() -> int:
    """Runs all cases; returns the exit code."""
    print(f"fastertransformer_tf {__version__}, TensorFlow {tf.__version__}")
    failed = 0
    for device, name, ratio in _cases():
        fine = ratio <= 1
        failed += not fine
        print(f"{'ok    ' if fine else 'FAILED'} {device}  {name}: {ratio:.3f} of the tolerance")
    print("all tests passed" if not failed else f"{failed} tests failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
