"""int8 models: the op beside its simulation in TensorFlow, the programs, checkpoints."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from conftest import shared_path

from fastertransformer_tf import profile_transformer_inference
from fastertransformer_tf.checkpoints import writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import encoder_graphs, encoder_weights, int8_weights
from fastertransformer_tf.programs import classification
from fastertransformer_tf.quantization import conversion, points

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SIZES = encoder_graphs.EncoderSizes(2, 4, 8, 64)
LENGTHS = np.array([9, 4, 1], np.int32)
REAL = np.arange(9)[None] < LENGTHS[:, None]


def made(rng):
    """Float weights, quantized weights and a batch."""
    weights = encoder_weights.random_weights(SIZES)
    hidden = rng.standard_normal((3, 9, SIZES.hidden)).astype(np.float32)
    return weights, int8_weights.quantize(weights, SIZES, hidden, LENGTHS), hidden


def run(encoder, weights, hidden, **options):
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(
            encoder(tf.constant(hidden), tf.constant(LENGTHS), SIZES, weights, **options)
        )[REAL]


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("remove_padding", [True, False])
@pytest.mark.parametrize("encoder", [encoder_graphs.op_encoder, encoder_graphs.op_layers])
def test_op_is_its_simulation(rng, mode, remove_padding, encoder):
    weights, quantized, hidden = made(rng)
    out = run(encoder, quantized, hidden, remove_padding=remove_padding, int8_mode=mode)
    simulated = int8_weights.simulated_output(quantized, SIZES, mode, hidden, LENGTHS)[REAL]
    # TensorFlow sums in another order: here and there another integer.
    difference = np.abs(out - simulated)
    assert difference.mean() < 0.01
    rows = (difference < 1e-4).all(axis=-1)
    assert rows.mean() > 0.3
    exact = run(encoder_graphs.tensorflow_encoder, weights, hidden)
    error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.1


def test_integers_stand_for_the_weights(rng):
    weights, quantized, _ = made(rng)
    floats = int8_weights.dequantize(quantized, SIZES)
    for layer, ints, back in zip(weights, quantized, floats, strict=True):
        for weight in points.KERNELS:
            kernel = layer[weight.google]
            steps = np.abs(kernel).max(axis=0) / 127
            assert ints[weight.google].dtype == np.int8
            assert np.all(np.abs(back[weight.google] - kernel) <= steps * 0.5001)
        assert set(back) == set(layer)


def save(path, quantized):
    """Writes a quantized encoder as a checkpoint; returns its prefix."""
    variables = {points.FORMAT_VARIABLE: np.array(points.FORMAT, np.int32)}
    for index, layer in enumerate(quantized):
        for name, value in layer.items():
            variables[points.full_name(index, name)] = value
    prefix = str(path / "int8.ckpt")
    writing.save_checkpoint(prefix, variables)
    return prefix


def test_checkpoints_of_integers_are_read(tmp_path, rng):
    _, quantized, _ = made(rng)
    prefix = save(tmp_path, quantized)
    loaded = encoder_weights.load_weights(prefix, SIZES, int8=True)
    for layer, expected in zip(loaded, quantized, strict=True):
        assert set(layer) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(layer[name], value)
            assert layer[name].dtype == value.dtype
    with pytest.raises(UserError, match="query/kernel is int8, expected floating point"):
        encoder_weights.load_weights(prefix, SIZES)


def profile(tmp_path, *arguments):
    values = flags.FlagValues()
    profile_transformer_inference.define_flags(values)
    values(
        ["program", f"--output_dir={tmp_path}/out", "--profiling_output_file=t.tsv", "--num_iter=2",
         "--predict_batch_size=2", "--max_seq_length=8", *arguments]
    )  # fmt: skip
    return profile_transformer_inference.run(values)


@pytest.mark.parametrize("mode", [1, 2])
def test_profile_transformer_inference(tmp_path, rng, capsys, mode):
    sizes = ["--num_hidden_layers=2", "--num_attention_heads=4", "--attention_head_size=8"]
    seconds = profile(tmp_path, f"--int8_mode={mode}", *sizes)
    assert [len(side) for side in seconds] == [2, 2]
    assert (tmp_path / "out" / "t.tsv").is_file()


@pytest.mark.parametrize("dtype,mode", [("fp32", 1), ("fp32", 2), ("fp16", 2)])
def test_encoder_sample(dtype, mode):
    output = subprocess.run(
        [sys.executable, "sample/encoder_sample.py", "-batch", "2", "-s", "8", "-l", "2", "-n", "2",
         "-size", "16", "-time", "1", "-iterations", "2", "-d", dtype, "-int8_mode", str(mode)],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.findall(r"Encoder TF v\.s\. (\S+) .* Cross check (\w+)", output) == [
        ("FT", "True"),
        ("EFF-FT", "True"),
    ]
    assert output.count(f"INT8-v{mode}") == 2


@pytest.fixture
def without_tf32():
    """The simulation's attention and both models' embeddings and heads as exact as the op."""
    allowed = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(allowed)


@pytest.mark.parametrize(
    "mode",
    [
        2,
        pytest.param(1, id="1-gpu", marks=pytest.mark.gpu),
        pytest.param(2, id="2-gpu", marks=pytest.mark.gpu),
    ],
)
def test_answers_on_real_data(shared_data, tmp_path, without_tf32, mode):
    """MRPC's dev set by a calibrated MiniLM: the op and its simulation answer alike, and well."""
    folder = shared_path(shared_data, "minilm_mrpc")
    glue = shared_path(shared_data, "glue_data", "MRPC")

    def classify(checkpoint, name, *arguments):
        values = flags.FlagValues()
        classification.define_flags(values)
        values(
            ["program", "--task_name=mrpc", f"--data_dir={glue}",
             f"--vocab_file={folder}/vocab.txt", f"--bert_config_file={folder}/bert_config.json",
             f"--init_checkpoint={checkpoint}", "--max_seq_length=128", "--eval_batch_size=32",
             f"--output_dir={tmp_path}/{name}", *arguments]
        )  # fmt: skip
        classification.run(values)

    ranges = ["--do_calib", "--calib_method=percentile", f"--quant_mode=ft{mode}"]
    classify(folder / "model.ckpt", "calibrated", *ranges)
    calibrated = f"{tmp_path}/calibrated/model.ckpt-calibrated"
    conversion.quantize_checkpoint(calibrated, f"{tmp_path}/int8/model.ckpt", mode)
    logits = {}
    for name, checkpoint, options in (
        ("simulated", calibrated, ["--if_quant", f"--quant_mode=ft{mode}"]),
        ("op", f"{tmp_path}/int8/model.ckpt", [f"--int8_mode={mode}", "--remove_padding"]),
    ):
        out = f"--output_logits={tmp_path}/{name}.npy"
        classify(checkpoint, name, "--do_eval", out, *options)
        logits[name] = np.load(f"{tmp_path}/{name}.npy")
    same = logits["op"].argmax(axis=1) == logits["simulated"].argmax(axis=1)
    assert len(same) == 408 and same.mean() >= 0.995
    text = (tmp_path / "op" / "eval_results.txt").read_text()
    accuracy = float(re.search(r"eval_accuracy = ([\d.]+)", text)[1])
    assert accuracy > 0.8064 - 0.01
