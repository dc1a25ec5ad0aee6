"""ckpt_quantization: what it writes, what it refuses, and that others read what it wrote."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
from conftest import REPOSITORY

from fastertransformer_tf.checkpoints import reading, restoring, type_conversion, writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import conversion, integers, points, scale_list

BFLOAT16 = np.dtype(tf.bfloat16.as_numpy_dtype)


def with_ranges(tiny, rng, *, per_column):
    """The weights of a model and a range for each of its points; FINAL_POINT's too."""
    tensors = dict(tiny.weights)
    for name in points.all_names(tiny.config["num_hidden_layers"]):
        kernel = tensors.get(name.removesuffix("_quantizer"))
        if kernel is None:
            high, low = np.float32(rng.uniform(1, 9)), np.float32(-rng.uniform(1, 9))
        else:
            high = np.abs(kernel).max(axis=0 if per_column else None)
            low = -high
        tensors |= {f"{name}/quant_max": high, f"{name}/quant_min": low}
    return tensors


@pytest.fixture
def tiny(tmp_path):
    return tiny_bert.make_tiny_bert(tmp_path / "tiny")


def _read(prefix):
    source = reading.Checkpoint(prefix)
    return {name: np.asarray(source.load(name)) for name in source.shapes}


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("per_column", [True, False])
def test_what_is_written(tiny, tmp_path, rng, mode, per_column):
    tensors = with_ranges(tiny, rng, per_column=per_column) | {"global_step": np.int64(3)}
    writing.save_checkpoint(tmp_path / "in.ckpt", tensors)
    sizes = conversion.quantize_checkpoint(tmp_path / "in.ckpt", tmp_path / "out.ckpt", mode)
    assert (sizes.layers, sizes.hidden, sizes.inner) == (3, 32, 48)
    written = _read(tmp_path / "out.ckpt")
    lists = {points.full_name(layer, "amaxList") for layer in range(3)}
    assert set(written) == set(tiny.weights) | lists | {"global_step", "bert/encoder/int8_format"}
    assert written["bert/encoder/int8_format"].dtype == np.int32
    assert written["bert/encoder/int8_format"] == 1
    kernels = [points.full_name(layer, w.google) for layer in range(3) for w in points.KERNELS]
    for name in set(tiny.weights) - set(kernels):
        np.testing.assert_array_equal(written[name], tensors[name])
    for name in kernels:
        amax = np.float64(tensors[f"{name}_quantizer/quant_max"])
        exact = tensors[name].astype(np.float64) * 127 / amax
        assert written[name].dtype == np.int8 and written[name].shape == tensors[name].shape
        assert np.abs(written[name] - exact).max() < 0.5001
    for layer in range(3):
        _check_list(written[points.full_name(layer, "amaxList")], layer, tensors)


def _check_list(stored, layer, tensors):
    def amax(name):
        high, low = tensors[f"{name}/quant_max"], tensors[f"{name}/quant_min"]
        return np.maximum(np.abs(high), np.abs(low))

    for slot, point in points.BY_SLOT.items():
        assert stored[4 * slot] == amax(points.full_name(layer, point.scope))
    following = points.full_name(layer + 1, "attention/self/query/input_quantizer")
    assert stored[60] == (amax(following) if layer < 2 else 1)
    at = 80
    for weight in points.KERNELS:
        columns = weight.sizes(32, 48)[1]
        expected = amax(points.full_name(layer, f"{weight.google}_quantizer"))
        np.testing.assert_array_equal(stored[at : at + columns], np.broadcast_to(expected, columns))
        at += columns


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_half_checkpoints(tiny, rng, dtype):
    tensors = with_ranges(tiny, rng, per_column=True)
    half = {name: np.asarray(value).astype(dtype) for name, value in tensors.items()}
    quantized = conversion.quantize_tensors(half)
    name = points.full_name(1, "intermediate/dense/kernel")
    amax = half[f"{name}_quantizer/quant_max"].astype(np.float32)
    expected = integers.quantize_kernel(half[name].astype(np.float32), amax)
    np.testing.assert_array_equal(quantized[name], expected)
    assert quantized[points.full_name(1, "intermediate/dense/bias")].dtype == dtype
    assert quantized[points.full_name(1, "amaxList")].dtype == np.float32


def test_a_column_of_zeros_is_legal_but_only_with_weights_of_zero(tiny, rng):
    tensors = with_ranges(tiny, rng, per_column=True)
    name = points.full_name(0, "output/dense/kernel")
    tensors[name] = tensors[name].copy()
    tensors[name][:, 5] = 0
    tensors[f"{name}_quantizer/quant_max"][5] = tensors[f"{name}_quantizer/quant_min"][5] = 0
    quantized = conversion.quantize_tensors(tensors)
    assert not quantized[name][:, 5].any() and quantized[name][:, 4].any()
    scales = scale_list.parse(quantized[points.full_name(0, "amaxList")], 32, 48)
    assert scales.kernels["output_kernel"][5] == 1
    tensors[name][3, 5] = 0.1
    with pytest.raises(UserError, match="layer_0/output/dense/kernel_quantizer of 1 columns.*5, i"):
        conversion.quantize_tensors(tensors)


def test_all_that_is_wrong_is_told_at_once(tiny, rng):
    tensors = with_ranges(tiny, rng, per_column=True)
    wrong = {
        "attention/self/query/input_quantizer": (np.nan, -1),
        "attention/self/key/aftergemm_quantizer": (np.inf, -1),
        "attention/output/dense/input_quantizer": (0, 0),
        "intermediate/dense/input_quantizer": (-2, 2),
        "output/dense/input_quantizer": ([1, 2], [1, 2]),
        "output/dense/kernel_quantizer": (np.ones(3), -np.ones(3)),
    }
    for scope, (high, low) in wrong.items():
        name = points.full_name(1, scope)
        tensors |= {f"{name}/quant_max": np.float32(high), f"{name}/quant_min": np.float32(low)}
    del tensors[points.full_name(2, "intermediate/dense/aftergemm_quantizer/quant_min")]
    with pytest.raises(UserError) as caught:
        conversion.quantize_tensors(tensors)
    message = str(caught.value)
    assert message.startswith("7 ranges cannot be used") and "\n" not in message
    for scope in wrong:
        assert points.full_name(1, scope) in message
    for part in ("is nan", "is inf", "is 0", "-2 < 2", "has 2 ranges", "has 3 ranges", "quant_min"):
        assert part in message


def test_nothing_is_quantized_twice_or_without_ranges(tiny, tmp_path, rng):
    tensors = with_ranges(tiny, rng, per_column=False)
    quantized = conversion.quantize_tensors(tensors)
    with pytest.raises(UserError, match="the checkpoint is quantized: it has .*layer_"):
        conversion.quantize_tensors(quantized)
    with pytest.raises(UserError, match="quantized: it has bert/encoder/layer_0/amaxList, float32"):
        conversion.quantize_tensors(
            tensors | {"bert/encoder/layer_0/amaxList": np.ones(3, np.float32)}
        )
    with pytest.raises(UserError, match="ranges cannot be used.*--do_calib"):
        conversion.quantize_checkpoint(tiny.checkpoint, tmp_path / "out.ckpt")
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(UserError, match="int8_mode is 4, expected 1, 2 or 3"):
        conversion.quantize_checkpoint(tiny.checkpoint, tmp_path / "out.ckpt", 4)
    nan = dict(tensors)
    name = points.full_name(0, "output/dense/kernel")
    nan[name] = np.full_like(nan[name], np.nan)
    with pytest.raises(UserError, match="layer_0/output/dense/kernel is no kernel of finite"):
        conversion.quantize_tensors(nan)
    del nan[name]
    with pytest.raises(UserError, match=r"output/dense/kernel \[48, 32\] is missing"):
        conversion.quantize_tensors(nan)


def test_int8_variables_are_restored_as_int8(tiny, tmp_path, rng):
    quantized = conversion.quantize_tensors(with_ranges(tiny, rng, per_column=True))
    half = type_conversion.convert_tensors(quantized)
    writing.save_checkpoint(tmp_path / "int8.ckpt", half)
    kernel = points.full_name(0, "output/dense/kernel")
    scales = points.full_name(0, "amaxList")
    bias = points.full_name(0, "output/dense/bias")
    with tf.Graph().as_default():
        with restoring.restored_variables(str(tmp_path / "int8.ckpt"), "float16") as restored:
            made = [
                tf.compat.v1.get_variable(kernel, [48, 32], tf.int8),
                tf.compat.v1.get_variable(scales, quantized[scales].shape, tf.float32),
                tf.compat.v1.get_variable(bias, [32], tf.float32),
            ]
        with tf.compat.v1.Session() as session:
            restored.load(session)
            values = session.run(made)
    assert [value.dtype for value in values] == [np.int8, np.float32, np.float16]
    np.testing.assert_array_equal(values[0], quantized[kernel])
    np.testing.assert_array_equal(values[1], quantized[scales])


@pytest.mark.parametrize(
    ("quantize", "asked", "message"),
    [(True, tf.float32, "kernel is int8, expected floating"), (False, tf.int8, "expected int8: c")],
)
def test_the_wrong_kind_of_checkpoint_is_told(tiny, tmp_path, rng, quantize, asked, message):
    tensors = with_ranges(tiny, rng, per_column=True)
    tensors = conversion.quantize_tensors(tensors) if quantize else tensors
    writing.save_checkpoint(tmp_path / "x.ckpt", tensors)
    kernel = points.full_name(0, "output/dense/kernel")
    with (
        tf.Graph().as_default(),
        pytest.raises(UserError, match=message),
        restoring.restored_variables(str(tmp_path / "x.ckpt"), "float32"),
    ):
        tf.compat.v1.get_variable(kernel, [48, 32], asked)


def test_program(tiny, tmp_path, rng):
    writing.save_checkpoint(tmp_path / "in.ckpt", with_ranges(tiny, rng, per_column=True))
    command = [sys.executable, "-m", "fastertransformer_tf.ckpt_quantization"]
    arguments = [f"--init_checkpoint={tmp_path}/in.ckpt", "--int8_mode=2"]

    def run(*more):
        return subprocess.run(
            [*command, *arguments, *more],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(f"--quantized_checkpoint={tmp_path}/out.ckpt")
    assert done.returncode == 0, done.stderr
    assert "3 layers of hidden size 32 quantized for int8_mode 2" in done.stdout
    assert _read(tmp_path / "out.ckpt")["bert/encoder/int8_format"] == 1
    refused = run(f"--quantized_checkpoint={tmp_path}/out.ckpt.index")
    assert refused.returncode == 1
    assert "expected a prefix without" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
