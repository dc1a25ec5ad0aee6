"""The quantizers of a training: every point's value against NumPy, its gradient, its variables."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tiny_bert import make_tiny_bert

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import calibrated, integers, points, quantizers, ranges

_tf1 = tf.compat.v1
LAYERS, H, INNER = 2, 4, 6


def _amax(*, by_column):
    """Another range for every point; kernels' by column or not."""
    rng = np.random.default_rng(8)
    result = {}
    for name in points.all_names(LAYERS):
        split = points.split_name(name)
        weight = points.KERNEL_SCOPES.get(split[1]) if split else None
        shape = [weight.sizes(H, INNER)[1]] if weight and by_column else []
        result[name] = rng.uniform(0.5, 2, shape).astype(np.float32)
    return result


def _expected_range(amax, name, mode):
    """The range that docs/int8.md says a point is rounded with; None where it is not."""
    split = points.split_name(name)
    if split is None:
        return None
    layer, scope = split
    if scope in points.KERNEL_SCOPES:
        return amax[name]
    # Steps 1 to 8 of the document, by hand.
    always = {
        "attention/self/query/input_quantizer": "attention/self/query/input_quantizer",
        "attention/self/key/input_quantizer": "attention/self/query/input_quantizer",
        "attention/self/value/input_quantizer": "attention/self/query/input_quantizer",
        "attention/output/dense/input_quantizer": "attention/output/dense/input_quantizer",
        "intermediate/dense/input_quantizer": "intermediate/dense/input_quantizer",
        "output/dense/input_quantizer": "output/dense/input_quantizer",
    }
    in_mode_2 = {
        "attention/output/dense/aftergemm_quantizer": "attention/output/dense/aftergemm_quantizer",
        "attention/output/add_residual_input_quantizer": "attention/self/query/input_quantizer",
        "output/dense/aftergemm_quantizer": "output/dense/aftergemm_quantizer",
        "output/add_residual_input_quantizer": "intermediate/dense/input_quantizer",
    }
    source = (always if mode == 1 else always | in_mode_2).get(scope)
    return None if source is None else amax[points.full_name(layer, source)]


def _unit_of_sums(amax, name):
    """What a sum of integers stands for, where a point is given sums; else 1."""
    dense, kind = name.rsplit("/", 1)
    if kind != "aftergemm_quantizer":
        return np.float64(1)
    a = _expected_range(amax, f"{dense}/input_quantizer", 1)
    return np.float64(a) * amax[f"{dense}/kernel_quantizer"] / 127**2


@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("mode", [1, 2, 3])
def test_every_point_rounds_forward_and_passes_gradients_inside_its_range(rng, mode, by_column):
    amax = _amax(by_column=by_column)
    given, fetched = {}, {}
    with tf.Graph().as_default(), _tf1.Session() as session:
        point = quantizers.Quantizers(amax, mode).create()
        for name, own in amax.items():
            a = _expected_range(amax, name, mode)
            sums = _unit_of_sums(amax, name)
            shape = (5, max(own.shape + sums.shape, default=H))
            # Apart from the middles of integers, so that a last bit decides none.
            steps = rng.integers(-200, 200, shape) + rng.uniform(-0.45, 0.45, shape)
            steps = np.where(np.abs(np.abs(steps) - 127) < 0.01, 100.2, steps)
            x = (steps * ((1.0 if a is None else a) / 127) / sums).astype(np.float32)
            weights = rng.normal(size=shape).astype(np.float32)
            tensor = tf.constant(x)
            y = point(name, tensor)
            given[name] = (a, sums, steps, x, weights)
            fetched[name] = (y, tf.gradients(tf.reduce_sum(y * weights), tensor)[0])
        session.run(_tf1.global_variables_initializer())
        results = session.run(fetched)
    for name, (a, sums, steps, x, weights) in given.items():
        value, slope = results[name]
        if a is None:
            np.testing.assert_allclose(value, x * sums, rtol=1e-6, err_msg=name)
            np.testing.assert_allclose(slope, weights * sums, rtol=1e-6, err_msg=name)
            continue
        # What a product multiplies are the integers themselves.
        dense, kind = name.rsplit("/", 1)
        multiplied = kind in ("input_quantizer", "kernel_quantizer") and "add_" not in name
        unit = 1.0 if multiplied else a.astype(np.float64) / 127
        lowest = -127 if kind == "kernel_quantizer" else -128
        integer = np.clip(np.rint(steps), lowest, 127)
        np.testing.assert_allclose(value, integer * unit, rtol=1e-6, err_msg=name)
        inside = np.abs(steps) < 127
        assert inside.any() and not inside.all()
        passed = weights * (sums * unit * 127 / a)
        np.testing.assert_allclose(slope, np.where(inside, passed, 0), rtol=1e-5, err_msg=name)
    rounded = [name for name, (a, *_) in given.items() if a is not None]
    assert len(rounded) == LAYERS * (6 + (6 if mode == 1 else 10))


@pytest.mark.parametrize("mode", [1, 2])
def test_a_product_is_that_of_rounded_numbers(rng, mode):
    """The three points of a dense layer together: value and gradients of the real product."""
    amax = _amax(by_column=True)
    dense = points.full_name(1, "intermediate/dense")
    a, w = (amax[f"{dense}/{kind}_quantizer"] for kind in ("input", "kernel"))
    x = rng.uniform(-0.9, 0.9, (4, H)).astype(np.float32) * a
    kernel = rng.uniform(-0.9, 0.9, (H, len(w))).astype(np.float32) * w
    weights = rng.normal(size=(4, len(w))).astype(np.float32)
    with tf.Graph().as_default(), _tf1.Session() as session:
        point = quantizers.Quantizers(amax, mode).create()
        inputs = tf.constant(x), tf.constant(kernel)
        rounded = [
            point(f"{dense}/{kind}_quantizer", tensor)
            for kind, tensor in zip(("input", "kernel"), inputs, strict=True)
        ]
        y = point(f"{dense}/aftergemm_quantizer", tf.matmul(*rounded))
        slopes = tf.gradients(tf.reduce_sum(y * weights), inputs)
        session.run(_tf1.global_variables_initializer())
        value, (slope_x, slope_kernel) = session.run((y, slopes))
    x8 = np.rint(x / a * 127) * (a / np.float64(127))
    w8 = np.rint(kernel / w * 127) * (w / np.float64(127))
    np.testing.assert_allclose(value, x8 @ w8, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slope_x, weights @ w8.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope_kernel, x8.T @ weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [1, 2])
def test_the_gradient_is_the_slope_of_the_rounding_over_many_steps(rng, mode):
    """Finite differences of every point: rounding is linear over whole steps, flat outside."""
    amax = _amax(by_column=False)
    inside, wide, outside = rng.integers(-100, 100, 50), 20, np.float64([128, -130, 190, -2500])
    rounded = 0
    with tf.Graph().as_default(), _tf1.Session() as session:
        point = quantizers.Quantizers(amax, mode).create()
        given = _tf1.placeholder(tf.float32, [None, 1])
        outputs = {name: point(name, given) for name in amax}
        slopes = {name: tf.gradients(y, given)[0] for name, y in outputs.items()}
        session.run(_tf1.global_variables_initializer())
        for name in amax:
            a = _expected_range(amax, name, mode)
            step = (1.0 if a is None else a / np.float64(127)) / _unit_of_sums(amax, name)

            def run(what, steps, step=step, name=name):
                x = (np.asarray(steps, np.float64)[:, np.newaxis] * step).astype(np.float32)
                return session.run(what[name], {given: x})[:, 0]

            high, low = run(outputs, inside + wide), run(outputs, inside - wide)
            difference = (high - low) / (2 * wide * step)
            np.testing.assert_allclose(run(slopes, inside), difference, rtol=1e-4, err_msg=name)
            assert (np.abs(difference) > 1e-6).all(), name
            if a is None:
                continue
            rounded += 1
            further, ends = run(outputs, outside * 1.5), run(outputs, outside)
            np.testing.assert_array_equal(further, ends, err_msg=name)
            np.testing.assert_array_equal(run(slopes, outside), 0, err_msg=name)
    assert rounded == LAYERS * (6 + (6 if mode == 1 else 10))


def test_ranges_are_variables_that_are_not_trained():
    amax = _amax(by_column=True)
    with tf.Graph().as_default(), _tf1.Session() as session:
        with _tf1.variable_scope("elsewhere"):
            quantizers.Quantizers(amax, 2).create()
        assert not _tf1.trainable_variables()
        variables = {v.op.name: v for v in _tf1.global_variables()}
        session.run(_tf1.global_variables_initializer())
        values = session.run(variables)
    assert set(values) == {f"{name}/quant_{end}" for name in amax for end in ("max", "min")}
    for name, value in amax.items():
        np.testing.assert_array_equal(values[f"{name}/quant_max"], value)
        np.testing.assert_array_equal(values[f"{name}/quant_min"], -value)
    with pytest.raises(UserError, match="int8_mode is 4"):
        quantizers.Quantizers(amax, 4)


def test_ranges_are_read_of_a_checkpoint(tmp_path):
    tiny = make_tiny_bert(tmp_path)
    kernel = points.full_name(1, "output/dense/kernel")
    weights = dict(tiny.weights)
    weights[kernel] = weights[kernel].copy()
    weights[kernel][:, 3] = 0
    amax = calibrated.kernel_ranges(weights, by_column=True)
    names = [name for name in points.all_names(3) if name not in amax]
    amax |= {name: np.float32(index + 1) for index, name in enumerate(names)}
    assert amax[f"{kernel}_quantizer"][3] == 0
    found = ranges.point_ranges(weights | calibrated.variables(amax))
    assert set(found) == set(amax)
    for name, value in amax.items():
        expected = np.where(np.asarray(value) == 0, integers.RANGE_OF_ZEROS, value)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    with pytest.raises(UserError, match="ranges cannot be used.*--do_calib"):
        ranges.point_ranges(weights)
