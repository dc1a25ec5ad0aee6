"""The profile programs: outputs are compared before any time is told, files are what they claim.

Where a test is about what the program does with a wrong op, a wrong one stands in for it.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import reference
import tensorflow.compat.v1 as tf
from absl import flags
from conftest import REPOSITORY
from test_run_classifier import write_task
from tiny_bert import make_tiny_bert
from tolerances import assert_close

from fastertransformer_tf import profile_transformer_inference
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import encoder_graphs
from fastertransformer_tf.programs import profile_classifier, profiling

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


def _wrong(hidden, lengths, sizes, weights, **unused):
    right = encoder_graphs.tensorflow_encoder(hidden, lengths, sizes, weights)
    return right * tf.constant(1.2, hidden.dtype)


@pytest.mark.parametrize("floatx", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("padding", ["--noremove_padding", "--remove_padding"])
def test_times_and_files(tmp_path, capsys, floatx, padding):
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
    for turn in (0, 1):
        # Our op alone: TensorFlow's own ops are renamed and fused as the processor asks for.
        assert "BertEncoder" not in _trace(tmp_path / "prof" / f"bert_origin_{turn}.json")
        assert "BertEncoder" in _trace(tmp_path / "prof" / f"bert_fastinfer_{turn}.json")


def _trace(path: pathlib.Path) -> set[str]:
    """The operations that a trace shows; checks that it is what Perfetto and chrome take."""
    events = json.loads(path.read_text())["traceEvents"]
    for event in events:
        assert event["ph"] in "XMNODstf"
        assert isinstance(event["pid"], int)
        if event["ph"] == "X":  # A complete event: when, how long, on which line.
            assert event["ts"] > 0 and event["dur"] >= 0 and isinstance(event["tid"], int)
    assert [e["args"]["name"] for e in events if e["ph"] == "M"]
    ops = {event["args"]["op"] for event in events if event["ph"] == "X"}
    assert len(ops) > 2
    return ops


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
    assert "_XlaRun" in original and "BertEncoder" not in original
    # Compiled, not beside what is compiled, by whatever name TensorFlow gives it.
    assert not [op for op in original if "Softmax" in op]
    assert {"_XlaRun", "BertEncoder"} <= fast


@pytest.mark.parametrize("activation", ["gelu", "gelu_erf", "relu"])
@pytest.mark.parametrize("epsilon", [None, 0.25])
@pytest.mark.parametrize("flag", [True, False], ids=["config flag", "config beside"])
def test_the_model_that_is_given_is_run(tmp_path, monkeypatch, activation, epsilon, flag):
    # 48 is not 4 x 32; the three activations and epsilons are far apart.
    changes = {"hidden_act": activation, **({"layer_norm_eps": epsilon} if epsilon else {})}
    model = make_tiny_bert(tmp_path / "model", **changes)
    arguments = [f"--init_checkpoint={model.checkpoint}"]
    if flag:
        moved = tmp_path / "config.json"
        pathlib.Path(model.config_file).rename(moved)
        arguments.append(f"--bert_config_file={moved}")
    sides = []
    monkeypatch.setattr(
        profiling, "compare", lambda values, both, columns, _: sides.extend([*both, columns])
    )
    values = flags.FlagValues()
    profile_transformer_inference.define_flags(values)
    flag_list = [f"--output_dir={tmp_path}/out", "--profiling_output_file=t", *arguments]
    values(["program", *flag_list, "--predict_batch_size=2", "--max_seq_length=8"])
    profile_transformer_inference.run(values)
    *both, columns = sides
    assert list(columns.values()) == [2, 8, 3, 4, 8]
    for side in both:
        (feeds,) = side.feeds
        hidden = next(value for value in feeds.values() if value.ndim == 3)
        expected = reference.encoder(
            hidden, model.layers, 4,
            activation={"gelu": "gelu_tanh"}.get(activation, activation), epsilon=epsilon or 1e-12,
        )[-1]  # fmt: skip
        assert_close(side.session.run(side.output, feeds), expected, "float32")
        side.session.close()


def test_a_model_that_cannot_be_known_is_refused(tmp_path):
    model = make_tiny_bert(tmp_path / "model")
    config = f"--bert_config_file={model.config_file}"

    def run(*arguments: str) -> None:
        values = flags.FlagValues()
        profile_transformer_inference.define_flags(values)
        common = [f"--output_dir={tmp_path}/out", "--profiling_output_file=t.tsv"]
        values(["program", *common, *arguments])
        with pytest.raises((UserError, FileNotFoundError)) as caught:
            profile_transformer_inference.run(values)
        message = str(caught.value)
        assert "\n" not in message
        assert not (tmp_path / "out").exists()
        raise caught.value

    for name, right in (("num_hidden_layers", 3), ("attention_head_size", 8)):
        with pytest.raises(UserError, match=f"--{name}=12, expected {right} of .*bert_config.json"):
            run(config, f"--{name}=12")
    with pytest.raises(FileNotFoundError, match="none not found"):
        run(f"--init_checkpoint={tmp_path}/none")
    with pytest.raises(FileNotFoundError, match="--bert_config_file=.*none not found"):
        run(f"--bert_config_file={tmp_path}/none")
    for key, value, message in (
        ("hidden_act", "tanh", "hidden_act is 'tanh', expected gelu"),
        ("intermediate_size", 64, "intermediate/dense/kernel has shape .*expected .32, 64."),
        ("num_hidden_layers", 4, "layer_3/attention/self/query/kernel is missing.*and 6 more"),
    ):
        changed = tmp_path / "changed.json"
        changed.write_text(json.dumps(model.config | {key: value}))
        with pytest.raises(UserError, match=message):
            run(f"--bert_config_file={changed}", f"--init_checkpoint={model.checkpoint}")
    pathlib.Path(model.config_file).unlink()
    with pytest.raises(UserError, match="no bert_config.json beside it: give --bert_config_file"):
        run(f"--init_checkpoint={model.checkpoint}")


def test_flags_of_what_is_not_done_are_refused(tmp_path):
    write_task(tmp_path, "mrpc")
    model = make_tiny_bert(tmp_path / "model")
    common = [
        "--task_name=mrpc", f"--data_dir={tmp_path}", f"--output_dir={tmp_path}/out",
        f"--vocab_file={model.vocab_file}", f"--bert_config_file={model.config_file}",
        f"--init_checkpoint={model.checkpoint}", "--max_seq_length=16",
        "--profiling_output_file=t.tsv",
    ]  # fmt: skip

    def run(*arguments: str) -> None:
        values = flags.FlagValues()
        profile_classifier.define_flags(values)
        values(["program", *common, *arguments])
        profile_classifier.run(values)

    for flag in (
        "--do_train",
        "--do_calib",
        "--if_quant",
        "--do_predict",
        "--export_dir=x",
        "--output_logits=x",
    ):
        with pytest.raises(UserError, match=f"{flag.split('=')[0]}: this program only times"):
            run(flag)
    for flag in ("--int8_mode=2", "--fp8_mode=1"):
        with pytest.raises(UserError, match=f"{flag}: TensorFlow's own transformer has none"):
            run(flag)
    with pytest.raises(UserError, match="--eval_batch_size=100, expected at most the"):
        run("--eval_batch_size=100")
    for name in ("sub/t.tsv", "..", "t.png"):
        with pytest.raises(UserError, match="--profiling_output_file=.*, expected the name"):
            run(f"--profiling_output_file={name}")
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises((UserError, FileNotFoundError), match="dev"):
        run()


def test_no_time_where_outputs_disagree(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoder_graphs, "op_encoder", _wrong)
    with pytest.raises(ValueError, match="relative error 0.2.*expected.*no time is reported"):
        profile_transformer_inference.run(_values(tmp_path))
    assert "average time" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_bad_flags(tmp_path):
    with pytest.raises(ValueError, match="int8_mode is 4, expected 0, 1, 2"):
        profile_transformer_inference.run(_values(tmp_path, "--int8_mode=4"))
    values = flags.FlagValues()
    profile_transformer_inference.define_flags(values)
    values(["program"])
    with pytest.raises(ValueError, match="--output_dir, --profiling_output_file"):
        profile_transformer_inference.run(values)


def test_float32_on_a_gpu_is_tf32_unless_forbidden(monkeypatch):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    config = profiling.tf.config
    assert profiling.precision("float32") == "float32"  # no GPU, or switched off by conftest
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(config.experimental, "tensor_float_32_execution_enabled", lambda: True)
    assert profiling.precision("float32") == "TF32"
    assert profiling.precision("float16") == "float16"
    expected = np.ones(100)
    assert profiling.check_agreement(expected, expected * 1.0005, "float32") > 1e-4
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert profiling.precision("float32") == "float32"
    with pytest.raises(ValueError, match="at most 0.0001 in float32"):
        profiling.check_agreement(expected, expected * 1.0005, "float32")
