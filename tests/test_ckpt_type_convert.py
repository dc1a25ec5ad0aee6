"""ckpt_type_convert: types, overflow, quantized checkpoints, nothing half-written."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY

from fastertransformer_tf.checkpoints import type_conversion, writing
from fastertransformer_tf.files import atomic

BFLOAT16 = np.dtype(tf.bfloat16.as_numpy_dtype)


def _tensors():
    rng = np.random.default_rng(3)
    layer = "bert/encoder/layer_0"
    return {
        f"{layer}/output/dense/kernel": rng.standard_normal((16, 4)).astype(np.float32),
        f"{layer}/output/dense/input_quantizer/quant_max": np.float32(123456.0),
        f"{layer}/amaxList": np.full(9, 1e30, np.float32),
        "bert/pooler/dense/bias": np.float32([1e-9, -2.5, 3.0]),
        "global_step": np.int64(7),
        "half": np.float16([1.5]),
    }


def _read(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}


@pytest.mark.parametrize(("dtype", "np_dtype"), [("float16", np.float16), ("bfloat16", BFLOAT16)])
def test_float32_is_converted_and_the_rest_kept(tmp_path, dtype, np_dtype):
    source = _tensors()
    writing.save_checkpoint(tmp_path / "in.ckpt", source)
    rows = type_conversion.convert_checkpoint(tmp_path / "in.ckpt", tmp_path / "out.ckpt", dtype)
    converted = _read(tmp_path / "out.ckpt")
    assert set(converted) == set(source)
    for name in ("bert/encoder/layer_0/output/dense/kernel", "bert/pooler/dense/bias"):
        assert converted[name].dtype == np_dtype
        np.testing.assert_array_equal(converted[name], source[name].astype(np_dtype))
    for name in set(source) - {r[0] for r in rows if r[1] != r[2]}:
        assert converted[name].dtype == source[name].dtype
        np.testing.assert_array_equal(converted[name], source[name])
    assert ("bert/pooler/dense/bias", "float32", dtype) in rows
    assert sum(old != new for _, old, new in rows) == 2


def test_overflow_is_refused_by_name_or_clipped(tmp_path):
    big = {"a": np.float32([1.0, -70000.0, 65504.0]), "b": np.float32([1, 2])}
    writing.save_checkpoint(tmp_path / "in.ckpt", big)
    with pytest.raises(ValueError, match=r"a: 1 of 3 values, e.g. -70000") as caught:
        type_conversion.convert_checkpoint(tmp_path / "in.ckpt", tmp_path / "out.ckpt")
    assert "b:" not in str(caught.value)
    assert not list(tmp_path.glob("*out.ckpt*"))
    type_conversion.convert_checkpoint(
        tmp_path / "in.ckpt", tmp_path / "out.ckpt", allow_overflow=True
    )
    np.testing.assert_array_equal(_read(tmp_path / "out.ckpt")["a"], [1.0, -65504.0, 65504.0])
    # bfloat16 has float32's range.
    type_conversion.convert_checkpoint(tmp_path / "in.ckpt", tmp_path / "out.ckpt", "bfloat16")


def test_what_an_optimizer_keeps_stays_as_it_is(tmp_path):
    weight = "bert/encoder/layer_0/output/dense/kernel"
    source = {
        weight: np.float32([[0.5]]),
        f"{weight}/adam_m": np.float32([[1e-9]]),
        f"{weight}/adam_v": np.float32([[1e-12]]),
        f"{weight}/Momentum": np.float64([[1e-300]]),
        "beta1_power": np.float32(1e-10),
        "training/beta2_power_1": np.float32(1e-10),
        "global_step": np.int64(7),
        "text": np.array([b"a name"], object),
        "wide": np.float64([1 / 3, 2.0]),
        "done": np.array([1.5]).astype(BFLOAT16),
    }
    writing.save_checkpoint(tmp_path / "in.ckpt", source)
    type_conversion.convert_checkpoint(tmp_path / "in.ckpt", tmp_path / "out.ckpt")
    converted = {name: np.asarray(value) for name, value in _read(tmp_path / "out.ckpt").items()}
    assert set(converted) == set(source)
    for name, value in source.items():
        expected = value.astype(np.float16) if name in (weight, "wide") else value
        assert converted[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(converted[name], expected)
    # Once more: nothing is left to do, and nothing changes.
    rows = type_conversion.convert_checkpoint(tmp_path / "out.ckpt", tmp_path / "out.ckpt")
    assert all(old == new for _, old, new in rows)
    again = _read(tmp_path / "out.ckpt")
    assert all(np.array_equal(again[name], converted[name]) for name in source)


def test_values_that_are_not_finite_are_refused_by_name(tmp_path):
    tensors = {"good": np.float32([1]), "a": np.float32([np.nan, 1]), "b": np.float64([np.inf])}
    writing.save_checkpoint(tmp_path / "in.ckpt", tensors)
    for overflow in (False, True):
        with pytest.raises(ValueError, match="2 variables hold.*a: 1 of 2 values; b: 1 of") as bad:
            type_conversion.convert_checkpoint(
                tmp_path / "in.ckpt", tmp_path / "out.ckpt", allow_overflow=overflow
            )
        assert "good" not in str(bad.value) and "\n" not in str(bad.value)
    assert not list(tmp_path.glob("*out.ckpt*"))


@pytest.mark.parametrize(
    "name", ["x.ckpt.index", "x.ckpt.data-00000-of-00001", "", "new/", "gs://x"]
)
def test_a_name_that_cannot_be_read_again_is_refused(tmp_path, name):
    writing.save_checkpoint(tmp_path / "in" / "in.ckpt", {"a": np.float32([1])})
    output = name if "://" in name else f"{tmp_path}/{name}"
    with pytest.raises(ValueError, match="fp16_checkpoint.* is .*, expected a p"):
        type_conversion.convert_checkpoint(tmp_path / "in" / "in.ckpt", output)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_int8_kernels_and_their_scale_list_stay():
    tensors = _tensors()
    kernel = "bert/encoder/layer_0/output/dense/kernel"
    tensors |= {
        kernel: np.int8([[-127, 3], [127, 0]]),
        "bert/encoder/int8_format": np.array(1, np.int32),
    }
    converted = type_conversion.convert_tensors(tensors)
    kept = (kernel, "bert/encoder/layer_0/amaxList", "bert/encoder/int8_format")
    for name in kept:
        assert converted[name].dtype == tensors[name].dtype
        np.testing.assert_array_equal(converted[name], tensors[name])
    assert converted["bert/pooler/dense/bias"].dtype == np.float16


@pytest.mark.parametrize("buffer", [np.float32, np.float16])
def test_packed_bytes_of_the_original_tools_are_refused(buffer):
    tensors = _tensors()
    # As the original tools store it: int8 bytes at the start of the float buffer.
    packed = np.zeros((64, 64), buffer)
    values = np.random.default_rng(1).integers(-127, 128, packed.size).astype(np.int8)
    packed.reshape(-1).view(np.int8)[: values.size] = values
    tensors["bert/encoder/layer_0/attention/self/key/kernel"] = packed
    with pytest.raises(ValueError, match="self/key/kernel holds packed bytes"):
        type_conversion.convert_tensors(tensors)


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    writing.save_checkpoint(tmp_path / "in.ckpt", _tensors())
    writing.save_checkpoint(tmp_path / "out.ckpt", {"old": np.float32([1])})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writing, "write_checkpoint", fail)
    with pytest.raises(OSError, match="disk full"):
        type_conversion.convert_checkpoint(tmp_path / "in.ckpt", tmp_path / "out.ckpt")
    assert set(_read(tmp_path / "out.ckpt")) == {"old"}
    assert len(list(tmp_path.iterdir())) == 4


def test_missing_and_damaged_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing not found"):
        type_conversion.convert_checkpoint(tmp_path / "nothing", tmp_path / "out")
    writing.save_checkpoint(tmp_path / "in.ckpt", _tensors())
    data = tmp_path / f"in.ckpt{atomic.DATA_SUFFIX}"
    data.write_bytes(data.read_bytes()[:40])
    with pytest.raises(ValueError, match="in.ckpt is damaged or incomplete"):
        type_conversion.convert_checkpoint(tmp_path / "in.ckpt", tmp_path / "out.ckpt")
    with pytest.raises(ValueError, match="expected one of float16, bfloat16"):
        type_conversion.convert_tensors({}, "float64")


def test_program(tmp_path):
    writing.save_checkpoint(tmp_path / "in.ckpt", _tensors())
    command = [sys.executable, "-m", "fastertransformer_tf.ckpt_type_convert"]
    arguments = [f"--init_checkpoint={tmp_path}/in.ckpt", f"--fp16_checkpoint={tmp_path}/out.ckpt"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )

    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "bert/pooler/dense/bias from float32 to float16" in done.stdout.splitlines()
    assert "global_step from int64 to int64" in done.stdout.splitlines()
    shown = run("--help").stdout
    assert all(f in shown for f in ("--init_checkpoint", "--fp16_checkpoint", "--dtype", "quant"))
    arguments[0] = f"--init_checkpoint={tmp_path}/no"
    failed = run(*arguments)
    assert failed.returncode == 1
    assert "no not found, expected" in failed.stderr
    assert "Traceback" not in failed.stderr
