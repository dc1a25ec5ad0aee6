"""Prepared weights: once for every trace and kernel, from variables as from constants, bounded."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import textwrap

import numpy as np
import reference
import tensorflow as tf
from conftest import REPOSITORY

from benchmarks import report
from fastertransformer_tf import ops


def release_free_memory():
    """Gives what malloc holds free back to the system, so that reusing it shows in VmRSS."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


# Run in a process of its own, whose log tells each preparation.
SCRIPT = """
import sys
import numpy as np
import tensorflow as tf
from fastertransformer_tf import ops, spec

rng = np.random.default_rng(0)
H, N, I = 32, 2, 64

def values():
    return spec.random_layers(rng, 2, H, I)

def encode(x, layers, **options):
    return ops.bert_encoder(x, None, None, layers, head_num=N, size_per_head=H // N, **options)

def count(name, call, times):
    sys.stderr.flush()
    print(f"BEGIN {name}", file=sys.stderr, flush=True)
    for i in range(times):
        call(i)
    print(f"END {name}", file=sys.stderr, flush=True)

x = tf.constant(rng.normal(size=(1, 3, H)).astype(np.float32))
variables = [{key: tf.Variable(value) for key, value in layer.items()} for layer in values()]
run = tf.function(lambda x: encode(x, variables)[-1])  # a trace for each length
count("traces", lambda i: run(tf.zeros([1, i + 1, H])), 10)
count("eager", lambda i: encode(x, variables), 5)
count("all outputs", lambda i: encode(x, variables, num_outputs=2), 5)

def assign(i):
    variables[0]["attr_q_kernel"].assign(tf.zeros([H, H]))
    run(x)
count("assigned", assign, 3)

constants = [{key: tf.constant(value) for key, value in layer.items()} for layer in values()]
count("constants", lambda i: encode(x, constants, is_weight_const=bool(i % 2)), 6)
count("not cached", lambda i: encode(x, constants, cache_weights=False), 3)

with tf.Graph().as_default():
    nodes = [{key: tf.constant(value) for key, value in layer.items()} for layer in values()]
    y = encode(tf.constant(x.numpy()), nodes)[-1]
    with tf.compat.v1.Session() as session:
        count("session", lambda i: session.run(y), 5)
"""
EXPECTED = {
    "traces": 1, "eager": 0, "all outputs": 0, "assigned": 3, "constants": 1, "not cached": 3,
    "session": 1,
}  # fmt: skip


def test_prepared_once(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], cwd=REPOSITORY,
        env=os.environ | {"TF_CPP_VMODULE": "call=1", "TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found = {}
    for line in result.stderr.splitlines():
        if line.startswith("BEGIN "):
            name = line.removeprefix("BEGIN ")
            found[name] = 0
        found_here = "prepares weights" in line
        if found_here:
            found[name] += 1
    assert found == EXPECTED


def test_fresh_buffers_do_not_grow_memory(rng):
    """Weights that are computed in every call: neither sources nor prepared copies pile up."""
    heads, size, calls = 8, 64, 60
    weights = reference.random_layers(rng, 2, heads * size, 2048)
    copy_mib = sum(value.nbytes for layer in weights for value in layer.values()) / 2**20
    variables = [{key: tf.Variable(value) for key, value in layer.items()} for layer in weights]
    x = tf.constant(rng.normal(size=(1, 3, heads * size)).astype(np.float32))

    @tf.function(autograph=False)
    def run(factor):
        layers = [{key: value * factor for key, value in layer.items()} for layer in variables]
        return ops.bert_encoder(x, None, None, layers, head_num=heads, size_per_head=size)[0]

    for i in range(10):
        run(tf.constant(1 + i / 100))
    release_free_memory()
    before = report.resident_mib("VmRSS")
    for i in range(calls):
        got = run(tf.constant(1 + i / 100))
    release_free_memory()
    grown = report.resident_mib("VmRSS") - before
    # Kept for ever they would be 2 * calls copies.
    assert grown < 2.5 * copy_mib, f"{grown:.0f} MiB, a copy is {copy_mib:.0f} MiB"
    factor = np.float32(1 + (calls - 1) / 100)
    last = [{key: value * factor for key, value in layer.items()} for layer in weights]
    expected = reference.encoder(x.numpy(), last, heads)[-1]
    np.testing.assert_allclose(got, expected, atol=1e-4)
