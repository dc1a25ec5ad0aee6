"""sample/pytorch/encoder_sample.py: the lines of the original, and a wrong output is not timed."""

from __future__ import annotations

import importlib.util
import re

import pytest
from torch_support import REPOSITORY

pytest.importorskip("transformers", reason="transformers is not installed")

from fastertransformer_tf.errors import UserError  # noqa: E402
from fastertransformer_torch import ops  # noqa: E402

SIZES = ["2", "2", "8", "2", "8", "--iterations", "3"]


@pytest.fixture(scope="module")
def sample():
    path = REPOSITORY / "sample" / "pytorch" / "encoder_sample.py"
    spec = importlib.util.spec_from_file_location("torch_encoder_sample", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("precision", [[], ["--fp16"], ["--bf16"]])
def test_prints_the_lines_of_the_original(sample, capsys, precision):
    sample.main([*SIZES, "--time", "-thread_num", "2", *precision])
    out = capsys.readouterr().out
    assert "batch_size: 2\nlayer_num: 2\nseq_len: 8\nhead_num: 2\nhead_size: 8\n" in out
    for name in ("FT", "EFF-FT"):
        for what in ("Mean", "Max", "Min"):
            assert re.search(rf"^{name} {what} diff: +[\d.e-]+$", out, re.M)
    # Two ways to compute the same round differently: were it one, comparing would mean nothing.
    assert float(re.search(r"^FT Max diff: +(\S+)$", out, re.M).group(1)) > 0
    lines = out.splitlines()[-3:]
    assert [line.split()[1] for line in lines] == [
        "HuggingFaceEnocder", "FasterTransformer", "EFF-FasterTransformer",
    ]  # fmt: skip
    assert all(float(line.split()[4]) > 0 for line in lines)


@pytest.mark.parametrize("mode", ["1", "2", "3"])
def test_int8(sample, capsys, mode):
    sample.main([*SIZES, "--time", "--int8_mode", mode])
    out = capsys.readouterr().out
    assert 1e-4 < float(re.search(r"^FT Mean diff: +(\S+)$", out, re.M).group(1)) < 0.1
    assert "EFF-FasterTransformer time costs" in out


def test_what_a_thread_raises_is_raised(sample):
    calls = []

    def run():
        calls.append(0)
        if len(calls) > 3:  # The calls that do not count are over.
            raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        sample.time_ms(run, 3, threads=2)


def test_without_removing_padding(sample, capsys):
    sample.main([*SIZES, "--no-remove_padding"])
    out = capsys.readouterr().out
    assert "FT Mean diff" in out and "EFF-FT" not in out and "time costs" not in out


def test_wrong_output_is_not_timed(sample, monkeypatch, capsys):
    right = ops.bert_encoder
    monkeypatch.setattr(ops, "bert_encoder", lambda *a, **k: [x * 1.5 for x in right(*a, **k)])
    with pytest.raises(SystemExit, match="disagree"):
        sample.main([*SIZES, "--time"])
    assert "time costs" not in capsys.readouterr().out


def test_bad_arguments(sample, capsys):
    with pytest.raises(UserError, match="--avg_seq_len is 9, expected 1 to seq_len 8"):
        sample.main([*SIZES, "--avg_seq_len", "9"])
    with pytest.raises(SystemExit):
        sample.main(["0", *SIZES[1:]])
    assert "batch_size: 0 is given, expected at least 1" in capsys.readouterr().err
