"""Requests that a client may send: each ends in an error or a result, and the process lives on.

They run in processes of their own, so that an abort is a failed test and not the end of all tests.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from conftest import REPOSITORY

# What the scripts share: BUILD, REBUILD, ENCODER and TRANSFORMER call the four ops.
PRELUDE = """
import itertools
import numpy as np
import tensorflow as tf
from fastertransformer_tf import ops, spec

N, D, I = 2, 4, 8
H = N * D
WEIGHTS = {weight.op_input: tf.ones(weight.sizes(H, I)) for weight in spec.LAYER_WEIGHTS}
ERRORS = (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError,
          tf.errors.UnimplementedError, tf.errors.OutOfRangeError, ValueError, MemoryError)

def encoder(x, lengths, mask, **options):
    return ops.bert_encoder(x, lengths, mask, [WEIGHTS], head_num=N, size_per_head=D, **options)[0]

def transformer(x, mask, ids, offsets, remove_padding):
    return ops.bert_transformer(
        from_tensor=x, to_tensor=x, attr_mask=mask, sequence_id_offset=ids,
        amax_list=tf.zeros([0]), trt_seqlen_offset=offsets, head_num=N, size_per_head=D,
        remove_padding=remove_padding, **WEIGHTS)

def attempt(name, call):
    try:
        call()
        print("result", name)
    except ERRORS as error:
        assert str(error).strip(), name
        print("error", name, str(error)[:400].replace("\\n", " "))
"""

# Tensors without elements may have sizes whose products overflow.
HUGE = """
sizes = [0, 1, 2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**55, 2**62]
def empty(shapes):
    for shape in shapes:
        try:
            if int(np.prod([int(s) for s in shape], dtype=object)) == 0:
                yield tf.zeros(shape)
        except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError, ValueError):
            pass  # TensorFlow has no such tensor.
ids = tf.zeros([0], tf.int32)
masks = [tf.ones([4, 256, 256]), tf.zeros([4, 0, 0]), tf.zeros([0, 5, 5]), tf.zeros([0, 1, 9, 9])]
masks += list(empty(itertools.product(sizes, [0], [0])))
masks += list(empty((0, s, s) for s in sizes))
for x in empty(itertools.product([0, 1, 2**31], sizes)):
    for mask in masks:
        attempt(f"rebuild {x.shape} {mask.shape}", lambda: ops.rebuild_padding(
            x, tf.zeros([x.shape[0]], tf.int32) if x.shape[0] < 2 else ids, mask))
        for packed in (False, True):
            attempt(f"transformer {x.shape} {mask.shape}", lambda: transformer(
                x, mask, ids, tf.zeros([1], tf.int32), packed))
for x in empty(itertools.product([0, 1, 2**31, 2**62], [0, 1, 2**31, 2**62], [0, 8, 2**55])):
    for lengths in ([], [0], np.zeros([0], np.int64)):
        lengths = tf.constant(lengths, tf.int32)
        attempt(f"build {x.shape}", lambda: ops.build_mask_remove_padding(x, lengths))
        for remove in (False, True):
            attempt(f"encoder {x.shape}", lambda: encoder(x, lengths, None, remove_padding=remove))
for n, d in itertools.product([1, 2**20, 2**31, 2**62], repeat=2):
    attempt(f"heads {n} {d}", lambda: ops.bert_encoder(
        tf.zeros([0, 3, 8]), None, None, [WEIGHTS], head_num=n, size_per_head=d))
"""

# A view into another tensor, or into another library's memory, may begin at any element.
UNALIGNED = """
import ctypes
rng = np.random.default_rng(0)
lengths, S = [3, 0, 5], 5

class Capsule:
    '''A NumPy array as DLPack, at any address.'''
    def __init__(self, array):
        self.array = array
    def __dlpack__(self, **unused):
        return self.array.__dlpack__()

def shifted(array, by):
    '''The values `by` elements behind an aligned address, as a tensor that shares the memory.'''
    memory = np.zeros(array.size + 64, array.dtype)
    start = (-memory.ctypes.data // array.itemsize) % (64 // array.itemsize) + by
    view = memory[start : start + array.size].reshape(array.shape)
    view[...] = array
    return tf.experimental.dlpack.from_dlpack(view.__dlpack__())

x = rng.normal(size=(3, S, H)).astype(np.float32)
mask = np.ones((3, S, S), np.float32)
want = encoder(x, lengths, mask).numpy()
rows, ids = (t.numpy() for t in ops.build_mask_remove_padding(x, lengths))
ends = np.array([0, 3, 3, 8], np.int32)
want_rows = transformer(rows, mask, ids, ends, True).numpy()
padded_ends = np.array([0, 3, 5, 5, 10, 15, 15], np.int32)
want_padded = transformer(x, mask, ids, padded_ends, False).numpy()
for by in (1, 2, 3, 5):
    n = lambda a: shifted(np.asarray(a), by)
    for kind in (np.int32, np.int64):
        some = n(np.array(lengths, kind))
        assert np.array_equal(encoder(n(x), some, n(mask)), want)
        built = ops.build_mask_remove_padding(n(x), some)
        assert np.array_equal(built[0], rows) and np.array_equal(built[1], ids)
    moved = n(rows)
    assert np.array_equal(transformer(moved, n(mask), n(ids), n(ends), True), want_rows)
    moved = n(x)
    assert np.array_equal(transformer(moved, n(mask), n(ids), n(padded_ends), False), want_padded)
    rebuilt = ops.rebuild_padding(n(rows), n(ids), n(mask)).numpy()
    real = np.arange(S)[:, None] < np.array(lengths)[:, None, None]
    assert np.array_equal(rebuilt, np.where(real, x, 0))
    WEIGHTS = {key: n(value) for key, value in WEIGHTS.items()}
    assert np.array_equal(encoder(n(x), lengths, n(mask)), want)
parts = tf.unstack(tf.constant(np.stack([x] * 3)))
for part in [*parts, *tf.split(tf.constant(np.concatenate([x] * 3)), 3)]:
    assert np.array_equal(encoder(part, lengths, mask), want)
print("result unaligned")
"""


def run_script(body, **environment):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRELUDE + body) + '\nprint("alive")\n'],
        cwd=REPOSITORY, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"} | environment,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and lines[-1] == "alive", (
        result.stdout[-800:] + result.stderr[-3000:]
    )
    return lines


def test_sizes_that_overflow():
    lines = run_script(HUGE)
    assert sum(line.startswith("error rebuild") for line in lines) > 10
    assert sum(line.startswith("result rebuild") for line in lines) > 10
    # The reported request: one megabyte that killed the process.
    [reported] = [li for li in lines if "rebuild (0, 36028797018963968) (4, 256, 256)" in li]
    assert reported.startswith("error") and "expected [B,S,H] of fewer than 2^63" in reported


def test_addresses_of_any_alignment():
    run_script(UNALIGNED)


# A flag of /proc/cpuinfo that tells each apart from the one before.
ISAS = {
    "generic": "",
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "avx512": "avx512dq",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
}


@pytest.mark.parametrize("isa", list(ISAS))
def test_ops_under_each_instruction_set(isa):
    if ISAS[isa] not in pathlib.Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this processor has no {ISAS[isa]}")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_ops.py",
         "tests/test_nonfinite.py"],
        cwd=REPOSITORY, env=os.environ | {"FT_CPU_ISA": isa}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def test_random_calls():
    """tests/fuzz_ops.py; FT_FUZZ_CASES makes it longer, FT_TEST_SEED repeats a run."""
    calls = int(os.environ.get("FT_FUZZ_CASES", 3000))
    seed = os.environ.get("FT_TEST_SEED", "20261125")
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "fuzz_ops.py"), seed, str(calls)],
        cwd=REPOSITORY, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout[-300:], result.stderr[-3000:])
    last = result.stdout.splitlines()[-1].split()
    results, errors = int(last[0]), int(last[2])
    assert results + errors == calls and min(results, errors) > calls // 10
