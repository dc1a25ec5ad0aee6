"""The profile programs: outputs are compared before any time is told, files are what they claim.

Where a test is about the program alone, TensorFlow's encoder or a wrong one stands in for the op.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from conftest import REPOSITORY
from test_run_classifier import write_task
from tiny_bert import make_tiny_bert

from fastertransformer_tf import encoder_graphs, profile_transformer_inference, profile_util

SIZES = [
    "--predict_batch_size=2", "--max_seq_length=8", "--num_hidden_layers=2",
    "--num_attention_heads=2", "--attention_head_size=8", "--num_iter=2",
]  # fmt: skip


def _values(tmp_path: pathlib.Path, *arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    profile_transformer_inference.define_flags(values)
    values(
        ["program", f"--output_dir={tmp_path}", "--profiling_output_file=table.tsv", *SIZES]
        + list(arguments)
    )
    return values


def _same(hidden, lengths, sizes, weights, **unused):
    return encoder_graphs.tensorflow_encoder(hidden, lengths, sizes, weights)


def _wrong(*args, **kwargs):
    return _same(*args, **kwargs) * tf.constant(1.2, args[0].dtype)


@pytest.mark.parametrize("floatx", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("padding", ["--noremove_padding", "--remove_padding"])
def test_times_and_files(tmp_path, monkeypatch, capsys, floatx, padding):
    monkeypatch.setattr(encoder_graphs, "op_encoder", _same)
    seconds = profile_transformer_inference.run(
        _values(tmp_path, f"--floatx={floatx}", padding, "--tf_profile")
    )
    assert [len(times) for times in seconds] == [2, 2]
    printed = capsys.readouterr().out
    lines = (tmp_path / "table.tsv").read_text().splitlines()
    assert lines[-3].split("\t")[0] == floatx
    header, row = (line.split("\t") for line in lines[-2:])
    assert row[:5] == ["2", "8", "2", "2", "8"]
    for side, column in (("original tensorflow", -2), ("fast transformer", -1)):
        assert f"average time (seconds) elapsed {side}: {row[column]}" in printed
    assert header[-2:] == ["Tensorflow", "FasterTransformer"]
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    for name in ("bert_origin_1", "bert_fastinfer_0"):
        assert "Softmax" in _trace(tmp_path / "prof" / f"{name}.json")


def _trace(path: pathlib.Path) -> set[str]:
    """The operations that a trace shows; checks that it is what Perfetto and chrome take."""
    events = json.loads(path.read_text())["traceEvents"]
    for event in events:
        assert event["ph"] in "XMNODstf"
        assert isinstance(event["pid"], int)
        if event["ph"] == "X":  # A complete event: when, how long, on which line.
            assert event["ts"] > 0 and event["dur"] >= 0 and isinstance(event["tid"], int)
    assert [e["args"]["name"] for e in events if e["ph"] == "M"]
    return {event["args"]["op"] for event in events if event["ph"] == "X"}


@pytest.mark.parametrize("padding", ["--noremove_padding", "--remove_padding"])
def test_xla_compiles_around_the_op(tmp_path, padding):
    write_task(tmp_path, "mrpc")
    model = make_tiny_bert(tmp_path / "model")
    # A process of its own: TensorFlow decides at the first session whether it compiles for CPUs.
    done = subprocess.run(
        [sys.executable, "-m", "fastertransformer_tf.profile_bert_inference"]
        + ["--task_name=mrpc", f"--data_dir={tmp_path}", f"--output_dir={tmp_path}/out"]
        + [f"--vocab_file={model.vocab_file}", f"--bert_config_file={model.config_file}"]
        + [f"--init_checkpoint={model.checkpoint}", "--max_seq_length=16", "--num_iter=3"]
        + ["--eval_batch_size=2", "--profiling_output_file=t.tsv", "--xla"]
        + ["--tf_profile", padding],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "XLA: True" in (tmp_path / "out" / "t.tsv").read_text()
    assert "average time (seconds) elapsed fast transformer" in done.stdout
    folder = tmp_path / "out" / "prof"
    assert len(list(folder.iterdir())) == 6
    original, fast = (_trace(folder / f"bert_{side}_2.json") for side in ("origin", "fastinfer"))
    assert "_XlaRun" in original and "Softmax" not in original
    assert {"_XlaRun", "BertEncoder"} <= fast


def test_the_op_agrees(tmp_path, capsys):
    profile_transformer_inference.run(_values(tmp_path, "--remove_padding", "--tf_profile"))
    assert "outputs agree: relative error" in capsys.readouterr().out
    assert "BertEncoder" in _trace(tmp_path / "prof" / "bert_fastinfer_1.json")
    assert "Softmax" in _trace(tmp_path / "prof" / "bert_origin_1.json")


def test_no_time_where_outputs_disagree(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoder_graphs, "op_encoder", _wrong)
    with pytest.raises(ValueError, match="relative error 0.2.*expected.*no time is reported"):
        profile_transformer_inference.run(_values(tmp_path))
    assert "average time" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_bad_flags(tmp_path):
    with pytest.raises(ValueError, match="INT8 is not in this version"):
        profile_transformer_inference.run(_values(tmp_path, "--int8_mode=1"))
    values = flags.FlagValues()
    profile_transformer_inference.define_flags(values)
    values(["program"])
    with pytest.raises(ValueError, match="--output_dir, --profiling_output_file"):
        profile_transformer_inference.run(values)


def test_float32_on_a_gpu_is_tf32_unless_forbidden(monkeypatch):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    config = profile_util.tf.config
    assert profile_util.precision("float32") == "float32"  # no GPU, or switched off by conftest
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(config.experimental, "tensor_float_32_execution_enabled", lambda: True)
    assert profile_util.precision("float32") == "TF32"
    assert profile_util.precision("float16") == "float16"
    expected = np.ones(100)
    assert profile_util.check_agreement(expected, expected * 1.0005, "float32") > 1e-4
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert profile_util.precision("float32") == "float32"
    with pytest.raises(ValueError, match="at most 0.0001 in float32"):
        profile_util.check_agreement(expected, expected * 1.0005, "float32")
