"""TensorFlow's own encoder as the comparisons build it, and the peers of the benchmarks."""

import pathlib

import numpy as np
import pytest
import reference
import tensorflow.compat.v1 as tf
import tolerances

from fastertransformer_tf import spec
from fastertransformer_tf.models import encoder_graphs, encoder_weights

SIZES = encoder_graphs.EncoderSizes(layers=2, heads=4, size=8, inner=48)


def _run_tensorflow(dtype: tf.DType, hidden: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    weights = encoder_weights.random_weights(SIZES)
    with tf.Graph().as_default(), tf.Session() as session:
        output = encoder_graphs.tensorflow_encoder(
            tf.cast(tf.constant(hidden), dtype), tf.constant(lengths), SIZES, weights
        )
        assert output.dtype == dtype
        assert not session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
        return session.run(tf.cast(output, tf.float32))


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((3, 7, SIZES.hidden), dtype=np.float32), np.int32([7, 4, 1])


def test_float32_is_the_float64_reference() -> None:
    import reference

    hidden, lengths = _batch()
    layers = spec.by_op_input(encoder_weights.random_weights(SIZES))
    expected = reference.encoder(hidden, layers, SIZES.heads, lengths=lengths)[-1]
    real = reference.valid_rows(lengths, hidden.shape[1])
    actual = _run_tensorflow(tf.float32, hidden, lengths)
    np.testing.assert_allclose(actual[real], expected[real], atol=1e-5)


def test_padding_keys_do_not_matter() -> None:
    hidden, lengths = _batch()
    changed = hidden.copy()
    changed[1, 4:] += 5
    first, second = (_run_tensorflow(tf.float32, x, lengths) for x in (hidden, changed))
    np.testing.assert_allclose(first[1, :4], second[1, :4], atol=1e-6)
    assert np.abs(first[1, 4:] - second[1, 4:]).max() > 0.1


@pytest.mark.parametrize(("dtype", "atol"), [(tf.float16, 2e-2), (tf.bfloat16, 2e-1)])
def test_other_types_follow_float32(dtype: tf.DType, atol: float) -> None:
    hidden, lengths = _batch()
    expected = _run_tensorflow(tf.float32, hidden, lengths)
    actual = _run_tensorflow(dtype, hidden, lengths)
    assert 0 < np.abs(actual - expected).max() < atol


def test_load_weights_names_every_fault(tmp_path: pathlib.Path) -> None:
    tensors = {
        f"bert/encoder/layer_{index}/{name}": value
        for index, layer in enumerate(encoder_weights.random_weights(SIZES))
        for name, value in layer.items()
    }
    prefix = str(tmp_path / "model.ckpt")

    def save(values: dict[str, np.ndarray]) -> None:
        with tf.Graph().as_default(), tf.Session() as session:
            names = list(values)
            session.run(
                tf.raw_ops.SaveV2(
                    prefix=prefix,
                    tensor_names=names,
                    shape_and_slices=[""] * len(names),
                    tensors=[tf.constant(values[name]) for name in names],
                )
            )

    save(tensors)
    loaded = encoder_weights.load_weights(prefix, SIZES)
    np.testing.assert_array_equal(
        loaded[1]["output/dense/bias"], tensors["bert/encoder/layer_1/output/dense/bias"]
    )
    del tensors["bert/encoder/layer_0/output/dense/bias"]
    tensors["bert/encoder/layer_1/intermediate/dense/kernel"] = np.zeros((2, 3), np.float32)
    save(tensors)
    with pytest.raises(ValueError, match="layer_0/output/dense/bias is missing.*shape \\[2, 3\\]"):
        encoder_weights.load_weights(prefix, SIZES)


@pytest.mark.parametrize("gelu_op", [True, False])
def test_onnx_model_computes_the_same(gelu_op: bool) -> None:
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from benchmarks import encoder_model, engines

    model = encoder_model.EncoderModel(2, 4, 8, 48, "tiny")
    hidden, lengths = _batch()
    proto = engines.build_onnx(model, encoder_weights.random_weights(SIZES), gelu_op)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    mask = (np.arange(7) < lengths[:, None]).astype(np.int64)
    (actual,) = session.run(["output"], {"hidden": hidden, "mask": mask})
    expected = _run_tensorflow(tf.float32, hidden, lengths)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_torch_model_computes_the_same() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks import encoder_model, engines

    model = encoder_model.EncoderModel(2, 4, 8, 48, "tiny")
    hidden, lengths = _batch()
    adder = (np.arange(7) >= lengths[:, None, None, None]).astype(np.float32) * -10000
    encoder = engines.torch_encoder(model, encoder_weights.random_weights(SIZES)).eval()
    with torch.inference_mode():
        actual = encoder(torch.from_numpy(hidden), torch.from_numpy(adder)).numpy()
    expected = _run_tensorflow(tf.float32, hidden, lengths)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_float32_is_no_worse_than_tensorflow(rng):
    """Against float64, at most twice the error of TensorFlow's own graph: sums of 768 and 3072."""
    sizes = encoder_graphs.EncoderSizes(3, 12, 64, 3072)
    weights = encoder_weights.random_weights(sizes)
    hidden = rng.standard_normal((1, 48, sizes.hidden)).astype(np.float32)
    lengths = np.array([48], np.int32)
    truth = reference.encoder(hidden, spec.by_op_input(weights), sizes.heads)[-1]
    results = []
    for encoder, options in (
        (encoder_graphs.op_encoder, {"remove_padding": False}),
        (encoder_graphs.tensorflow_encoder, {}),
    ):
        with tf.Graph().as_default(), tf.Session() as session:
            states = encoder(tf.constant(hidden), tf.constant(lengths), sizes, weights, **options)
            results.append(session.run(states))
    tolerances.assert_no_worse(*results, truth, "float32")
