"""The cache of packed weights: bounded, right after eviction, filled once by many threads."""

from __future__ import annotations

import ctypes
import gc
import threading

import numpy as np
import pytest
import reference
import tensorflow as tf

from benchmarks import report
from fastertransformer_tf import ops

SETS_KEPT = 64  # EncoderKernel::kMaxCached


def release_free_memory():
    """Gives what malloc holds free back to the system, so that reusing it shows in VmRSS."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak():
    """report.reset_peak, where the system lets it."""
    try:
        report.reset_peak()
    except OSError as error:
        pytest.skip(f"/proc/self/clear_refs cannot be written: {error}")


def constant_layers(weights, factor=1.0):
    """Weights as tensors of their own memory, kernels times `factor`."""
    return [
        {
            name: tf.constant(value * np.float32(factor) if value.ndim == 2 else value)
            for name, value in layer.items()
        }
        for layer in weights
    ]


def size_mib(layers):
    """MiB of all tensors."""
    return sum(value.numpy().nbytes for layer in layers for value in layer.values()) / 2**20


def encoder(weights, heads, size, is_weight_const):
    """BertEncoder as a function of hidden states and weights: one kernel for all weight sets."""
    specs = [{k: tf.TensorSpec(v.shape, tf.float32) for k, v in w.items()} for w in weights]
    hidden = tf.TensorSpec([None, None, heads * size], tf.float32)

    @tf.function(input_signature=[hidden, specs], autograph=False)
    def run(x, layers):
        return ops.bert_encoder(
            x, None, None, layers, head_num=heads, size_per_head=size,
            remove_padding=False, is_weight_const=is_weight_const,
        )[0]  # fmt: skip

    return run


def test_more_weight_sets_than_are_kept(rng):
    heads, size = 4, 64
    weights = reference.random_layers(rng, 1, heads * size, 1024)
    cached, fresh = (encoder(weights, heads, size, const) for const in (True, False))
    x = tf.constant(rng.normal(size=(1, 3, heads * size)).astype(np.float32))

    def check(factor):
        layers = constant_layers(weights, factor)
        want = fresh(x, layers).numpy()
        for _ in range(2):  # packed, then found
            np.testing.assert_array_equal(cached(x, layers).numpy(), want)
        return layers

    first = check(0.5)
    alive = [check(1 + i / 100) for i in range(SETS_KEPT + 10)]  # so each has its own addresses
    del alive
    release_free_memory()
    before = report.resident_mib("VmRSS")
    more = 3 * SETS_KEPT
    for i in range(more):
        check(2 + i / 100)
    release_free_memory()
    grown = report.resident_mib("VmRSS") - before
    # Each set is held twice by the cache: packed, and as it was. Were none evicted, this is what
    # would have been added.
    unbounded = more * 2 * size_mib(first)
    assert grown < unbounded / 8, f"{grown:.0f} of {unbounded:.0f} MiB"
    # Evicted long ago: packed again.
    np.testing.assert_array_equal(cached(x, first).numpy(), fresh(x, first).numpy())


def test_threads_pack_once(rng):
    heads, size, threads = 12, 64, 4
    weights = reference.random_layers(rng, 2, heads * size, 3072)
    run = encoder(weights, heads, size, True)
    x = tf.constant(rng.normal(size=(1, 2, heads * size)).astype(np.float32))
    run(x, constant_layers(weights, 0.5))  # makes the kernel and TensorFlow's threads
    layers = constant_layers(weights)
    packed = size_mib(layers)
    barrier, outs = threading.Barrier(threads), [None] * threads

    def work(i):
        barrier.wait()
        outs[i] = run(x, layers).numpy()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    release_free_memory()
    before = report.resident_mib("VmRSS")
    reset_peak()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    peak = report.resident_mib("VmHWM") - before
    assert 0.8 * packed < peak < 1.5 * packed, f"{peak:.0f}, packed {packed:.0f} MiB"
    for out in outs:
        np.testing.assert_array_equal(out, outs[0])
    expected = reference.encoder(x.numpy(), weights, heads)[-1]
    np.testing.assert_allclose(outs[0], expected, atol=1e-4)
