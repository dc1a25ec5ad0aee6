"""The NumPy parts of INT8: points, integers, scale lists, the shift of channels."""

from __future__ import annotations

import re

import numpy as np
import pytest
import reference
import tiny_bert
from conftest import REPOSITORY

from fastertransformer_tf import spec
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.quantization import fold_shift, integers, points, ranges, scale_list

H, INNER = 4, 6


def test_the_slots_are_those_of_the_document():
    text = (REPOSITORY / "docs" / "int8.md").read_text()
    rows = re.findall(r"^\| ([0-9, ]+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    expected = {}
    for slots, scope in rows:
        names = re.search(r"\{(.*)\}", scope)
        scopes = (
            [scope.replace(names[0], name) for name in names[1].split(",")] if names else [scope]
        )
        expected |= dict(zip(map(int, slots.split(", ")), scopes, strict=True))
    assert len(expected) == 16 and expected.pop(15).startswith("the next layer's")
    assert expected == {slot: point.scope for slot, point in points.BY_SLOT.items()}


def test_points_are_complete_and_distinct():
    assert len(points.BY_SCOPE) == len(points.POINTS) == 21
    assert len(points.KERNEL_SCOPES) == 6
    for weight in points.KERNELS:  # Every quantized product has its three quantizers.
        scope = weight.google.removesuffix("/kernel")
        assert {f"{scope}/input_quantizer", f"{scope}/aftergemm_quantizer"} <= set(points.BY_SCOPE)
        assert f"{scope}/kernel_quantizer" in points.KERNEL_SCOPES
    # What each mode of training leaves out, by the keywords of the original tools.
    disabled = {
        "ft1": ("aftergemm", "softmax_input", "residual_input", "local_input"),
        "ft2": ("local_input", "softmax_input"),
        "ft3": ("local_input",),
    }
    for mode, keywords in disabled.items():
        for point in points.POINTS:
            assert (mode in point.quant_modes) != any(word in point.scope for word in keywords)
    assert len(points.all_names(2)) == 2 * 27 + 1
    assert points.split_name(points.full_name(12, "output/dense/kernel")) == (
        12,
        "output/dense/kernel",
    )
    assert points.split_name("bert/pooler/dense/kernel") is None


def test_activations_round_half_to_even_and_stay_in_range():
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 500, -127.5, -128.5, -500, 0])
    expected = [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, -128, 0]
    assert integers.quantize_activation(x, 127.0).tolist() == expected
    special = np.float32([np.nan, np.inf, -np.inf])
    assert integers.quantize_activation(special, 3.0).tolist() == [-128, 127, -128]


def test_kernels_are_rounded_by_column(rng):
    kernel = rng.standard_normal((50, 7)).astype(np.float32)
    amax = np.abs(kernel).max(axis=0)
    kernel[0, 0], amax[0] = 5 * amax[0], amax[0]  # Beyond its range.
    q = integers.quantize_kernel(kernel, amax)
    exact = np.clip(kernel.astype(np.float64) * 127 / amax, -127, 127)
    assert q.dtype == np.int8 and q.min() >= -127 and abs(q[0, 0]) == 127
    assert np.abs(q - exact).max() <= 0.5001
    restored = integers.dequantize(q, amax)
    np.testing.assert_allclose(restored[1:], kernel[1:], atol=amax.max() / 253)
    one = integers.quantize_kernel(kernel, np.float32(2))
    assert np.abs(one - np.clip(kernel.astype(np.float64) * 63.5, -127, 127)).max() <= 0.5001


def _list(rng):
    activations = rng.uniform(0.5, 20, 16).astype(np.float32)
    kernels = {
        w.op_input: rng.uniform(0.1, 2, w.sizes(H, INNER)[1]).astype(np.float32)
        for w in points.KERNELS
    }
    return scale_list.ScaleList(activations, kernels)


def test_every_entry_of_a_scale_list(rng):
    scales = _list(rng)
    a = scales.activations.astype(float)
    w = {name: value.astype(float) for name, value in scales.kernels.items()}
    stored = scales.to_array()
    assert stored.dtype == np.float32
    assert len(stored) == 80 + 5 * H + INNER + 8 + 3 == scale_list.length(H, INNER)
    assert scale_list.length(768, 3072) == 80 + 9 * 768 + 8 + 3
    for slot in range(16):
        expected = [a[slot], a[slot] / 127, a[slot] / 127**2, 127 / a[slot]]
        np.testing.assert_allclose(stored[4 * slot : 4 * slot + 4], expected, rtol=1e-6)
    assert not stored[64:80].any()
    at = 80
    for name, columns in (
        ("attr_q_kernel", H),
        ("attr_k_kernel", H),
        ("attr_v_kernel", H),
        ("attr_output_kernel", H),
        ("inter_kernel", INNER),
        ("output_kernel", H),
    ):
        np.testing.assert_array_equal(stored[at : at + columns], scales.kernels[name])
        at += columns
    factors = [
        a[0] * w["attr_q_kernel"][0] / (127 * a[1]),
        a[0] * w["attr_k_kernel"][0] / (127 * a[3]),
        a[0] * w["attr_v_kernel"][0] / (127 * a[5]),
        a[2] * a[4] / (127 * a[7]),
        a[8] * a[6] / (127 * a[9]),
        a[9] * w["attr_output_kernel"][0] / (127 * a[10]),
        a[11] * w["inter_kernel"][0] / (127 * a[12]),
        a[13] * w["output_kernel"][0] / (127 * a[14]),
    ]
    np.testing.assert_allclose(stored[at : at + 8], factors, rtol=1e-6)
    np.testing.assert_array_equal(stored[at + 8 :], np.float32([max(a[2], a[4], a[6]), a[8], a[9]]))


def test_a_scale_list_is_read_again_and_checked(rng):
    scales = _list(rng)
    stored = scales.to_array()
    again = scale_list.parse(stored, H, INNER)
    np.testing.assert_array_equal(again.activations, scales.activations)
    for name, value in scales.kernels.items():
        np.testing.assert_array_equal(again.kernels[name], value)
    with pytest.raises(UserError, match=r"amaxList is float32 \[116\], expected float32 \[117\]"):
        scale_list.parse(stored[:-1], H, INNER)
    with pytest.raises(UserError, match=r"float64 \[117\]"):
        scale_list.parse(stored.astype(np.float64), H, INNER)
    stored[4 * 9], stored[80 + 4 * H] = np.nan, 0
    with pytest.raises(UserError, match="slot 9 is nan; 1 ranges of inter_kernel, such as 0"):
        scale_list.parse(stored, H, INNER)
    for bad in (0, -1, np.inf, np.nan, 1e-45):
        assert not scale_list.usable(np.float32(bad))
    assert scale_list.usable(1e-6)


def _folded(rng, dtype=np.float32):
    """A model's tensors in float64 with offsets in all its channels, and the centres of these."""
    config = tiny_bert.CONFIG
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], 2
    weights = spec.by_google_name(spec.random_layers(rng, layers, hidden, inner))
    tensors = {
        points.full_name(i, name): value.astype(np.float64) + (0.3 if value.ndim == 1 else 0)
        for i, layer in enumerate(weights)
        for name, value in layer.items()
    }
    tensors["bert/embeddings/LayerNorm/beta"] = rng.standard_normal(hidden)
    centres = {name: rng.normal(0, 3, hidden) for name in fold_shift.shift_points(layers)}
    return tensors, centres


def _run(tensors, x, heads=4):
    """The float64 reference; the embeddings are x plus the beta of their layer norm."""
    layers = [
        {w.op_input: tensors[points.full_name(layer, w.google)] for w in spec.LAYER_WEIGHTS}
        for layer in range(2)
    ]
    return reference.encoder(x + tensors["bert/embeddings/LayerNorm/beta"], layers, heads)


def test_a_folded_shift_changes_no_output(rng):
    tensors, centres = _folded(rng)
    folded = fold_shift.fold_shift(tensors, centres)
    x = rng.standard_normal((2, 5, tiny_bert.CONFIG["hidden_size"]))
    before, after = _run(tensors, x), _run(folded, x)
    np.testing.assert_allclose(after[-1], before[-1], rtol=0, atol=1e-11)
    # The output of the first layer is moved by its centre: the shift is there.
    moved = centres[points.full_name(1, fold_shift.LAYER_INPUT)]
    np.testing.assert_allclose(after[0], before[0] - moved, rtol=0, atol=1e-11)
    changed = {name for name in tensors if not np.array_equal(tensors[name], folded[name])}
    assert all(name.endswith(("bias", "beta")) for name in changed)
    assert "bert/encoder/layer_1/output/LayerNorm/beta" not in changed
    assert "bert/encoder/layer_0/attention/self/query/bias" in changed


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_shift_of_a_layer_s_input_is_found(rng, dtype):
    tensors, centres = _folded(rng)
    folded = fold_shift.fold_shift(tensors, centres)
    for layer in range(2):
        before, after = (
            {
                w.google: model[points.full_name(layer, w.google)].astype(dtype)
                for w in spec.LAYER_WEIGHTS
            }
            for model in (tensors, folded)
        )
        z = fold_shift.find_input_shift(before, after)
        expected = centres[points.full_name(layer, fold_shift.LAYER_INPUT)]
        np.testing.assert_allclose(z, expected, rtol=0, atol=400 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(fold_shift.find_input_shift(before, before), 0)
        after["attention/self/query/bias"] = after["attention/self/query/bias"] + rng.normal(
            0, 0.5, tiny_bert.CONFIG["hidden_size"]
        )
        assert fold_shift.find_input_shift(before, after) is None


def test_a_shift_without_centres_changes_nothing(rng):
    tensors, _ = _folded(rng)
    folded = fold_shift.fold_shift(tensors, {})
    assert all(np.array_equal(tensors[name], folded[name]) for name in tensors)
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    assert {v.dtype for v in fold_shift.fold_shift(half, {}).values()} == {np.dtype(np.float16)}


def test_a_shift_needs_all_biases(rng):
    tensors, centres = _folded(rng)
    del tensors["bert/encoder/layer_1/attention/self/key/bias"]
    with pytest.raises(UserError, match="has no bert/encoder/layer_1/attention/self/key/bias"):
        fold_shift.fold_shift(tensors, centres)


def test_sizes_of_what_is_no_bert_are_refused():
    with pytest.raises(UserError, match="has no kernel bert/encoder/layer_0/.*such as a"):
        ranges.model_sizes({"a": np.zeros(3)})
