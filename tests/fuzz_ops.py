"""Random calls of the ops, right and wrong ones: python tests/fuzz_ops.py SEED CALLS

Every call must end in the right result or in an error that names what is wrong. What is right is
decided here, from the documentation, and computed in float64. Prints the seed of each block of
calls before it runs, so that an abort can be repeated.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import reference
import reference_int8
import tensorflow as tf

from fastertransformer_tf import ops

ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnimplementedError,
    ValueError,
    TypeError,
)
BLOCK = 500
EDGES = [-(2**31), -(2**31) + 1, -7, -1, 0, 1, 2, 3, 2**31 - 1]


class Case:
    """One random model and batch; the same weights for all calls of a block."""

    def __init__(self, rng):
        self.rng = rng
        self.heads, self.size = int(rng.integers(1, 4)), int(rng.integers(1, 9))
        self.hidden = self.heads * self.size
        self.inner = int(rng.integers(1, 20))
        self.activation = str(rng.choice(["gelu_tanh", "gelu_erf", "relu"]))
        self.layers = reference.random_layers(rng, 2, self.hidden, self.inner)
        self.tensors = [{k: tf.constant(v) for k, v in layer.items()} for layer in self.layers]
        self.int8_layers, self.int8_lists = reference_int8.random_model(
            rng, 2, self.hidden, self.inner
        )
        self.int8_tensors = [
            {
                k: tf.constant(v if v.dtype == np.int8 else v.astype(np.float32))
                for k, v in x.items()
            }
            for x in self.int8_layers
        ]

    def attributes(self):
        return dict(head_num=self.heads, size_per_head=self.size, activation=self.activation)

    def batch(self):
        rng = self.rng
        batch_size, seq_len = int(rng.integers(0, 4)), int(rng.integers(0, 6))
        lengths = rng.integers(0, seq_len + 1, batch_size)
        x = rng.normal(size=(batch_size, seq_len, self.hidden)).astype(np.float32)
        mask = (rng.random((batch_size, seq_len, seq_len)) < 0.7).astype(np.float32)
        return x, lengths, mask


def mutate(rng, array):
    """Another shape or other values; integers often at the edges of their type."""
    array = np.array(array)
    kind = rng.integers(0, 5)
    if kind == 0 and array.ndim:
        shape = list(array.shape)
        shape[rng.integers(0, len(shape))] = int(rng.integers(0, 7))
        return np.zeros(shape, array.dtype)
    if kind == 1:
        return array[None]
    if kind == 2 and array.ndim:
        return array.reshape(-1) if array.ndim > 1 else array[: len(array) // 2]
    if kind == 3 and array.ndim:
        shape = [int(rng.choice([0, 1, 2**20, 2**31, 2**40])) for _ in array.shape]
        shape[rng.integers(0, len(shape))] = 0
        try:
            return tf.zeros(shape, array.dtype)
        except tf.errors.InvalidArgumentError:
            return array  # TensorFlow has no such tensor.
    if array.size and array.dtype.kind == "i":
        place = int(rng.integers(0, array.size))
        edges = EDGES + ([2**31, 2**32 + 1, -(2**62)] if array.dtype == np.int64 else [])
        array.flat[place] = rng.choice(edges)
    return array


def shape_of(value):
    return tuple(int(size) for size in value.shape)


def is_mask(mask, batch_size, seq_len):
    return shape_of(mask) in ((batch_size, seq_len, seq_len), (batch_size, 1, seq_len, seq_len))


def lengths_are_right(lengths, batch_size, seq_len):
    return shape_of(lengths) == (batch_size,) and all(0 <= int(n) <= seq_len for n in lengths)


def close(got, want):
    assert got.shape == want.shape, (got.shape, want.shape)
    # A row that may attend to nothing keeps score - 10000 to 1e-3 in float32, as in TensorFlow.
    np.testing.assert_allclose(got, want, atol=2e-2)


def encoder_call(case):
    x, lengths, mask = case.batch()
    rng = case.rng
    remove_padding, with_mask = bool(rng.integers(0, 2)), bool(rng.integers(0, 2))
    inputs = {"x": x, "lengths": lengths.astype(rng.choice([np.int32, np.int64])), "mask": mask}
    if rng.random() < 0.6:
        name = str(rng.choice(list(inputs)))
        inputs[name] = mutate(rng, inputs[name])
    x, lengths, mask = inputs["x"], inputs["lengths"], inputs["mask"] if with_mask else None
    right = len(shape_of(x)) == 3 and shape_of(x)[2] == case.hidden
    if right:
        batch_size, seq_len, _ = shape_of(x)
        no_lengths = shape_of(lengths) == (0,)
        right = batch_size * seq_len < 2**31 and max(batch_size, seq_len) < 2**31 - 1
        right = right and (
            (no_lengths and (batch_size == 0 or not remove_padding))
            or lengths_are_right(lengths, batch_size, seq_len)
        )
        right = right and (
            mask is None or shape_of(mask) == (0,) or is_mask(mask, batch_size, seq_len)
        )

    def call():
        return ops.bert_encoder(
            x, lengths, mask, case.tensors, remove_padding=remove_padding, num_outputs=2,
            **case.attributes(),
        )  # fmt: skip

    def check(outputs):
        array = np.asarray(x)
        if not array.size:
            assert all(output.shape == array.shape for output in outputs)
            return
        numbers = np.full(batch_size, seq_len) if no_lengths else np.asarray(lengths)
        given = None if mask is None or shape_of(mask) == (0,) else np.asarray(mask)
        wants = reference.encoder(
            array, case.layers, case.heads, lengths=numbers, mask=given, activation=case.activation
        )
        valid = reference.valid_rows(numbers, seq_len)
        for got, want in zip(outputs, wants, strict=True):
            close(got.numpy()[valid], want[valid])
            assert not remove_padding or not got.numpy()[~valid].any()

    return right, call, check


def transformer_call(case):
    x, lengths, mask = case.batch()
    rng = case.rng
    packed = bool(rng.integers(0, 2))
    batch_size, seq_len = x.shape[:2]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if packed:
        valid = reference.valid_rows(lengths, seq_len)
        rows = x[valid]
        ids = np.repeat(np.arange(batch_size) * seq_len - ends[:-1], lengths)
        offsets = ends
    else:
        rows, ids = x, np.zeros(0)
        offsets = [p for b, n in enumerate(lengths) for p in (b * seq_len, b * seq_len + n)]
        offsets = [*offsets, batch_size * seq_len]
    inputs = {
        "from_tensor": rows, "attr_mask": mask, "sequence_id_offset": np.array(ids, np.int32),
        "trt_seqlen_offset": np.array(offsets, np.int32),
    }  # fmt: skip
    before = {name: (shape_of(value), np.array(value).tobytes()) for name, value in inputs.items()}
    if rng.random() < 0.6:
        name = str(rng.choice(list(inputs)))
        inputs[name] = mutate(rng, inputs[name])
    changed = [
        name
        for name, value in inputs.items()
        if shape_of(value) != before[name][0] or np.asarray(value).tobytes() != before[name][1]
    ]
    # Not every change is an error: None leaves that open.
    right = None if changed else True

    def call():
        source = tf.convert_to_tensor(inputs["from_tensor"])
        return ops.bert_transformer(
            **dict(inputs, from_tensor=source, to_tensor=source), amax_list=np.zeros(0, np.float32),
            remove_padding=packed, **case.attributes(), **case.tensors[0],
        )  # fmt: skip

    def check(output):
        assert output.shape == inputs["from_tensor"].shape
        if changed or not x.size:
            return
        # Padded, the mask alone decides.
        numbers = lengths if packed else np.full(batch_size, seq_len)
        [want] = reference.encoder(
            x, case.layers[:1], case.heads, lengths=numbers, mask=mask, activation=case.activation
        )
        close(output.numpy(), want[valid] if packed else want)

    return right, call, check


def remove_call(case):
    x, lengths, _ = case.batch()
    rng = case.rng
    inputs = {"x": x, "lengths": lengths.astype(rng.choice([np.int32, np.int64]))}
    if rng.random() < 0.6:
        name = str(rng.choice(list(inputs)))
        inputs[name] = mutate(rng, inputs[name])
    x, lengths = inputs["x"], inputs["lengths"]
    right = len(shape_of(x)) == 3 and shape_of(x)[0] * shape_of(x)[1] < 2**31 - 1
    right = right and max(shape_of(x)[:2]) < 2**31 - 1
    right = right and lengths_are_right(lengths, *shape_of(x)[:2])

    def check(outputs):
        rows, ids = outputs
        seq_len = shape_of(x)[1]
        numbers = [int(n) for n in lengths]
        want = [np.asarray(x)[b, :n] for b, n in enumerate(numbers)]
        np.testing.assert_array_equal(rows, np.concatenate(want) if want else rows[:0])
        places = [b * seq_len + i for b, n in enumerate(numbers) for i in range(n)]
        np.testing.assert_array_equal(ids.numpy() + np.arange(len(places)), places)

    return right, lambda: ops.build_mask_remove_padding(x, lengths), check


def rebuild_call(case):
    x, lengths, mask = case.batch()
    rng = case.rng
    batch_size, seq_len = x.shape[:2]
    places = np.flatnonzero(reference.valid_rows(lengths, seq_len).ravel())
    if rng.random() < 0.3:  # any ascending rows
        places = np.flatnonzero(rng.random(batch_size * seq_len) < 0.5)
    rows = rng.normal(size=(len(places), case.hidden)).astype(np.float32)
    inputs = {
        "rows": rows, "ids": (places - np.arange(len(places))).astype(np.int32), "mask": mask
    }  # fmt: skip
    if rng.random() < 0.6:
        name = str(rng.choice(list(inputs)))
        inputs[name] = mutate(rng, inputs[name])
    rows, ids, mask = inputs["rows"], inputs["ids"], inputs["mask"]
    shape = shape_of(mask)
    right = len(shape_of(rows)) == 2 and shape_of(ids) == shape_of(rows)[:1]
    right = right and is_mask(mask, shape[0], shape[-1]) if shape else False
    if right:
        right = max(shape) < 2**31 - 1 and shape[0] * shape[-1] < 2**31 - 1
        places = np.asarray(ids).astype(np.int64) + np.arange(len(ids))
        right = right and bool(np.all(np.diff(places, prepend=-1) > 0))
        right = right and bool(np.all(places < shape[0] * shape[-1]))
        if right and shape[0] * shape[-1] * shape_of(rows)[1] > 2**24:
            # As right as a tf.zeros of that size, which takes the memory of the machine.
            return rebuild_call(case)

    def check(output):
        want = np.zeros((shape[0] * shape[-1], shape_of(rows)[1]), np.float32)
        want[places] = np.asarray(rows)
        np.testing.assert_array_equal(output, want.reshape(shape[0], shape[-1], shape_of(rows)[1]))

    return right, lambda: ops.rebuild_padding(rows, ids, mask), check


def spoil(rng, lists, mode):
    """Changes one scale list; returns whether the lists are still right ones for `mode`."""
    index = int(rng.integers(0, len(lists)))
    scales = lists[index].copy()
    if rng.random() < 0.3:
        lists[index] = scales[: int(rng.integers(0, len(scales)))]
        return False
    slots = [0, 9, 11, 13, *([10, 14, 15] if mode > 1 else [])]
    read = [4 * slot for slot in slots] + list(range(80, len(scales) - 11))
    at = int(rng.choice(read) if rng.random() < 0.5 else rng.integers(0, len(scales)))
    scales[at] = rng.choice([0, -1, np.nan, np.inf])
    lists[index] = scales
    return at not in read


def int8_call(case):
    x, lengths, mask = case.batch()
    mask[:, :, :1] = 1  # A row without a key has scores of three digits, and rounds by chance.
    rng = case.rng
    mode, remove_padding = int(rng.integers(1, 4)), bool(rng.integers(0, 2))
    lists = list(case.int8_lists)
    right = spoil(rng, lists, mode) if rng.random() < 0.4 else True
    if rng.random() < 0.1:
        lists, right = lists[1:], False

    def call():
        return ops.bert_encoder(
            x, lengths.astype(np.int32), mask, case.int8_tensors, remove_padding=remove_padding,
            num_outputs=2, int8_mode=mode, amax_list=lists, **case.attributes(),
        )  # fmt: skip

    def check(outputs):
        wants, doubtful = reference_int8.encoder(
            x, case.int8_layers, lists, case.heads, mode, lengths, mask, case.activation
        )
        certain = reference.valid_rows(lengths, x.shape[1]) & ~doubtful[:, None]
        for got, want in zip(outputs, wants, strict=True):
            close(got.numpy()[certain], want[certain])

    return right, call, check


CALLS = [encoder_call, transformer_call, remove_call, rebuild_call, int8_call]


def run_block(seed, calls):
    """Runs `calls` calls; returns how many gave results and how many errors."""
    rng = np.random.default_rng(seed)
    case = Case(rng)
    results = errors = 0
    for number in range(calls):
        make = CALLS[int(rng.integers(0, len(CALLS)))]
        right, call, check = make(case)
        where = f"seed {seed}, call {number}, {make.__name__}"
        try:
            output = call()
        except ERRORS as error:
            assert right is not True, f"{where}: refused a right call: {error}"
            assert str(error).strip(), where
            errors += 1
            continue
        assert right is not False, f"{where}: took a wrong call"
        try:
            check(output)
        except AssertionError as error:
            raise AssertionError(f"{where}: wrong result: {error}") from error
        results += 1
    return results, errors


def main():
    seed, calls = int(sys.argv[1]), int(sys.argv[2])
    results = errors = 0
    while results + errors < calls:
        print(f"seed {seed}", flush=True)
        more = run_block(seed, min(BLOCK, calls - results - errors))
        results, errors, seed = results + more[0], errors + more[1], seed + 1
    print(f"{results} results, {errors} errors")


if __name__ == "__main__":
    main()
