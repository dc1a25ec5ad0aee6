"""sample/encoder_sample.py: the ops agree with TensorFlow, and a wrong one is not timed."""

import importlib.util
import pathlib
import re
import sys

import pytest
from absl import flags

from fastertransformer_tf.models import encoder_graphs

_PATH = pathlib.Path(__file__).resolve().parent.parent / "sample" / "encoder_sample.py"


@pytest.fixture(scope="module")
def sample():
    spec = importlib.util.spec_from_file_location("encoder_sample", _PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["encoder_sample"] = module  # absl finds the module that defines a flag there
    spec.loader.exec_module(module)
    return module


def _run(sample, *arguments):
    sizes = ["-batch", "2", "-l", "2", "-s", "8", "-n", "2", "-size", "8", "-iterations", "3"]
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["encoder_sample", *sizes, *arguments])
    sample.main(["encoder_sample"])


@pytest.mark.parametrize("kind", ["encoder", "transformer"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_prints_the_lines_of_the_original(sample, capsys, kind, dtype):
    _run(sample, "-time", "1", "-d", dtype, "-op", kind, "-thread_num", "2")
    out = capsys.readouterr().out
    assert "=============== Argument ===============" in out
    assert re.search(r"^0 layer_0/attention/self/query/kernel:0 \(16, 16\)", out, re.M)
    for name in ("FT", "EFF-FT"):
        assert f"[INFO] Encoder TF v.s. {name} with tensor input Cross check True" in out
    # Two ways to compute the same round differently: were it one, a cross-check would mean nothing.
    differences = [float(value) for value in re.findall(r"Max diff (\S+)", out)]
    assert len(differences) == 2 and min(differences) > 0
    timing = [line for line in out.splitlines() if " precision " in line]
    assert [line.split()[9] for line in timing] == [
        "TF-while-time", "FT-OP-while-time", "EFF-OP-while-time",
    ]  # fmt: skip
    assert all(float(line.split()[10]) > 0 for line in timing)
    assert "( 3 iterations)" in timing[0]
    assert re.search(r"2 layer FT-OP-while-time +[\d.]+ ms with 2 threads", out)


@pytest.mark.parametrize("wrong", ["op_encoder", "op_layers"])
def test_wrong_output_is_not_timed(sample, monkeypatch, capsys, wrong):
    right = getattr(encoder_graphs, wrong)
    monkeypatch.setattr(encoder_graphs, wrong, lambda *a, **k: right(*a, **k) * 1.5)
    kind = {"op_encoder": "encoder", "op_layers": "transformer"}[wrong]
    with pytest.raises(SystemExit, match="disagree"):
        _run(sample, "-time", "1", "-d", "fp32", "-op", kind, "-thread_num", "1")
    out = capsys.readouterr().out
    assert "Cross check False" in out
    assert "while-time" not in out
