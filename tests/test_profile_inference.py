"""The profile programs: outputs are compared before any time is told, files are what they claim.

The op is replaced by TensorFlow's encoder or by a wrong one: what is tested is the programs.
"""

import json
import pathlib

import pytest
import tensorflow.compat.v1 as tf
from absl import flags

from fastertransformer_tf import encoder_graphs, profile_transformer_inference

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
        trace = json.loads((tmp_path / "prof" / f"{name}.json").read_text())
        assert any("Softmax" in event.get("name", "") for event in trace["traceEvents"])


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
