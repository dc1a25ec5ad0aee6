"""The encoder with named points: equal to google's, complete, and rounding as docs/int8.md says."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import reference_int8
import tensorflow as tf
from tiny_bert import TinyBert, make_tiny_bert
from tolerances import assert_close

from fastertransformer_tf.checkpoints import restoring
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import bert_compat, modeling
from fastertransformer_tf.models.point_encoder import Taps, identity
from fastertransformer_tf.quantization import integers, points, scale_list, simulation

_tf1 = tf.compat.v1
LENGTHS = [9, 4, 1]
S = 9


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"))


def run_model(tiny, ids, mask, taps=None, extra=None, scope=None, mixed_precision=False):
    """Runs BertModel, by google's transformer without taps; returns what it gives and shows."""
    bert = bert_compat.modeling()
    options = modeling.EncoderOptions(
        use_tensorflow=True, taps=taps, mixed_precision=mixed_precision
    )
    with tf.Graph().as_default(), modeling.encoder_options(options), _tf1.Session() as session:
        inputs = [_tf1.placeholder(tf.int32, [None, None]) for _ in range(2)]
        with restoring.restored_variables(tiny.checkpoint, "float32") as restored:
            config = bert.BertConfig.from_dict(tiny.config)
            model = bert.BertModel(config, False, *inputs, scope=scope)
        fetches = {
            "embeddings": model.get_embedding_output(),
            "layers": model.get_all_encoder_layers(),
            "pooled": model.get_pooled_output(),
            "extra": dict(extra or {}),
        }
        if taps is not None:
            fetches |= {"hidden": taps.hidden_states, "scores": taps.attention_scores}
        restored.load(session)
        return session.run(fetches, dict(zip(inputs, (ids, mask), strict=True)))


def _batch(rng):
    ids = rng.integers(0, 64, (len(LENGTHS), S)).astype(np.int32)
    return ids, reference.valid_rows(LENGTHS, S).astype(np.int32)


def test_without_rounding_it_is_googles_encoder(tiny, rng):
    ids, mask = _batch(rng)
    google = run_model(tiny, ids, mask)
    ours = run_model(tiny, ids, mask, Taps())
    assert len(ours["layers"]) == 3 and len(ours["hidden"]) == 4 and len(ours["scores"]) == 3
    for layer in range(3):
        assert_close(ours["layers"][layer], google["layers"][layer], "float32")
        np.testing.assert_array_equal(ours["hidden"][layer + 1], ours["layers"][layer])
    np.testing.assert_array_equal(ours["hidden"][0], ours["embeddings"])
    assert_close(ours["pooled"], google["pooled"], "float32")


def test_a_mixed_precision_is_bfloat16_between_float32_variables(tiny, rng):
    ids, mask = _batch(rng)
    plain = run_model(tiny, ids, mask, Taps())
    types = {}
    taps = Taps(lambda name, tensor: (types.update({name: tensor.dtype}), tensor)[1])
    mixed = run_model(tiny, ids, mask, taps, mixed_precision=True)
    kernels = {name for name in types if name.endswith("/kernel_quantizer")}
    assert len(kernels) == 18 and {types[name] for name in kernels} == {tf.float32}
    assert {types[name] for name in types.keys() - kernels} == {tf.bfloat16}
    np.testing.assert_array_equal(mixed["embeddings"], plain["embeddings"])
    assert mixed["layers"][-1].dtype == np.float32
    real = mask != 0
    for layer in range(3):
        assert_close(mixed["layers"][layer][real], plain["layers"][layer][real], "bfloat16")
    assert np.abs(mixed["layers"][-1] - plain["layers"][-1]).max() > 1e-4


def test_attention_scores_are_those_of_the_definition(tiny, rng):
    ids, mask = _batch(rng)
    ours = run_model(tiny, ids, mask, Taps())
    for layer in range(3):
        x, w = ours["hidden"][layer].astype(np.float64), tiny.layers[layer]
        q, k = ((x @ w[f"attr_{n}_kernel"] + w[f"attr_{n}_bias"]).reshape(3, S, 4, 8) for n in "qk")
        expected = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(8)
        assert_close(ours["scores"][layer], expected, "float32")


def test_every_point_is_passed_once_and_leads_somewhere(tiny, rng):
    ids, mask = _batch(rng)
    seen: dict[str, tf.Tensor] = {}

    def note(name, tensor):
        assert name not in seen
        seen[name] = tensor
        return tensor

    taps = Taps(note)
    plain = run_model(tiny, ids, mask, taps, seen)
    assert sorted(seen) == sorted(points.all_names(3))
    for scope, kind in (("softmax_input", "scores"), ("matmul_a_input", "probabilities")):
        name = points.full_name(1, f"attention/self/{scope}_quantizer")
        assert plain["extra"][name].shape == (3, 4, S, S), kind
    inner = plain["extra"][points.full_name(2, "output/dense/input_quantizer")]
    assert inner.shape == (3, S, 48)
    kernel = plain["extra"][points.full_name(2, "output/dense/kernel_quantizer")]
    np.testing.assert_array_equal(kernel, tiny.layers[2]["output_kernel"])
    names = [points.full_name(1, scope) for scope in (*points.BY_SCOPE, *points.KERNEL_SCOPES)]
    for changed in [*names, points.FINAL_POINT]:

        def double(name, tensor, changed=changed):
            return 2 * tensor if name == changed else tensor

        outputs = run_model(tiny, ids, mask, Taps(double))["layers"]
        assert np.abs(outputs[-1] - plain["layers"][-1])[0].max() > 1e-3, changed
        if "attention/output/add_residual" not in changed:  # That shows the layer before.
            assert_close(outputs[0], plain["layers"][0], "float32", message=changed)


def test_names_do_not_depend_on_the_scope_of_the_model(tiny):
    seen = []
    config = bert_compat.modeling().BertConfig.from_dict(tiny.config)
    taps = Taps(lambda name, tensor: seen.append(name) or tensor)
    options = modeling.EncoderOptions(use_tensorflow=True, taps=taps)
    with tf.Graph().as_default(), modeling.encoder_options(options):
        ids = tf.ones([1, 3], tf.int32)
        bert_compat.modeling().BertModel(config, True, ids, scope="teacher/bert")
        variables = [variable.op.name for variable in _tf1.global_variables()]
    assert sorted(seen) == sorted(points.all_names(3))
    assert "teacher/bert/encoder/layer_2/output/dense/kernel" in variables
    assert len(variables) == 5 + 3 * 16 + 2


def test_taps_need_tensorflows_transformer():
    with pytest.raises(ValueError, match="taps need use_tensorflow"):
        modeling.EncoderOptions(taps=Taps())
    with pytest.raises(ValueError, match="mixed_precision needs taps"):
        modeling.EncoderOptions(mixed_precision=True)
    assert identity("name", 3) == 3


# ---- The simulated int8 encoder ------------------------------------------------------------------


def _scales(tiny, ids, mask):
    """Ranges just large enough for a batch, from the float encoder."""
    seen: dict[str, tf.Tensor] = {}
    taps = Taps(lambda name, tensor: seen.setdefault(name, tensor))
    values = run_model(tiny, ids, mask, taps, seen)["extra"]
    lists = []
    for layer in range(3):
        slots = [
            np.abs(values[points.full_name(layer, points.BY_SLOT[slot].scope)]).max()
            for slot in range(15)
        ]
        following = points.full_name(layer + 1, points.BY_SLOT[0].scope)
        slots.append(np.abs(values[following]).max() if layer < 2 else 1)
        kernels = {
            w.op_input: np.abs(tiny.layers[layer][w.op_input]).max(axis=0) for w in points.KERNELS
        }
        lists.append(scale_list.ScaleList(np.float32(slots), kernels))
    return lists


@pytest.mark.parametrize("mode", [1, 2])
def test_the_simulation_is_what_the_document_says(tiny, rng, mode):
    ids, mask = _batch(rng)
    scales = _scales(tiny, ids, mask)
    taps = Taps(simulation.SimulatedInt8.of_scale_lists(scales, mode))
    simulated = run_model(tiny, ids, mask, taps)
    exact = run_model(tiny, ids, mask)
    square = np.broadcast_to(mask[:, None, :], (3, S, S))
    embeddings = exact["embeddings"]
    layers = [
        layer | {name: integers.quantize_kernel(layer[name], k) for name, k in s.kernels.items()}
        for layer, s in zip(tiny.layers, scales, strict=True)
    ]
    lists = [s.to_array() for s in scales]

    def int8(int8_mode):
        return reference_int8.encoder(
            embeddings, layers, lists, 4, int8_mode, np.full(3, S), square.astype(np.float64)
        )[0]

    expected = int8(mode)
    # A sum's last bit may decide a rounding otherwise, which changes a row of the first layer, and
    # by a little what attends to it later.
    first = np.abs(simulated["layers"][0] - expected[0]).max(axis=-1)
    assert (first < 1e-4).mean() > 0.8
    for layer in range(3):
        error = np.linalg.norm(expected[layer] - exact["layers"][layer])
        assert error > 0.05
        assert np.linalg.norm(simulated["layers"][layer] - expected[layer]) < 0.5 * error, layer
    other = int8(3 - mode)
    assert (np.abs(simulated["layers"][0] - other[0]).max(axis=-1) > 1e-3).mean() > 0.8


def test_fake_quantization_is_exact(rng):
    x = rng.standard_normal((40, 30)).astype(np.float32) * 3
    for amax, lowest, quantize in (
        (np.float32(2.5), -128, integers.quantize_activation),
        (np.abs(x).max(axis=0) * np.float32(0.8), -127, integers.quantize_kernel),
    ):
        with tf.Graph().as_default(), _tf1.Session() as session:
            ours = session.run(simulation.fake_quantize(tf.constant(x), amax, lowest))
        q = quantize(x, amax)
        np.testing.assert_array_equal(ours, integers.dequantize(q, amax))
        assert q.min() == lowest and q.max() == 127
    with pytest.raises(UserError, match="int8_mode is 4"):
        simulation.SimulatedInt8([], [], 4)
