"""run_classifier_wrap: MRPC on a real BERT, all tasks on a tiny one, and its errors."""

from __future__ import annotations

import functools
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from conftest import REPOSITORY, shared_path
from tiny_bert import TinyBert, make_tiny_bert
from tolerances import LOGITS, assert_close

from fastertransformer_tf import run_classifier_wrap


def run(**arguments: object) -> dict:
    """Runs the program in this process with its own flags."""
    values = flags.FlagValues()
    run_classifier_wrap.define_flags(values)
    values(["run_classifier_wrap", *(f"--{k}={v}" for k, v in arguments.items())])
    return run_classifier_wrap.run(values)


@functools.cache
def mrpc(data: pathlib.Path, out: pathlib.Path, **options: object) -> tuple[dict, np.ndarray]:
    """Evaluates MRPC dev once for each set of options; metrics and logits."""
    model = data / "minilm_mrpc"
    logits = out / f"{'_'.join(map(str, options.values())) or 'plain'}.npy"
    result = run(
        task_name="MRPC",
        do_eval=True,
        data_dir=data / "glue_data" / "MRPC",
        vocab_file=model / "vocab.txt",
        bert_config_file=model / "bert_config.json",
        init_checkpoint=model / "model.ckpt",
        max_seq_length=128,
        eval_batch_size=8,
        output_dir=out,
        output_logits=logits,
        **options,
    )
    return result, np.load(logits)


@pytest.fixture(scope="module")
def mrpc_run(
    shared_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> functools.partial:
    shared_path(shared_data, "minilm_mrpc", "bert_config.json")
    shared_path(shared_data, "glue_data", "MRPC", "dev.tsv")
    return functools.partial(mrpc, shared_data, tmp_path_factory.mktemp("mrpc"))


def check_mrpc_float32(result: dict) -> None:
    assert abs(result["eval_accuracy"] - 0.8063725) < 1e-6
    assert abs(result["eval_f1"] - 0.8658744) < 1e-6
    assert abs(result["eval_loss"] - 0.51163) < 2e-5


def test_mrpc_tensorflow(mrpc_run: functools.partial) -> None:
    result, logits = mrpc_run(use_tensorflow_transformer=True)
    check_mrpc_float32(result)
    expected = [[-2.0582328, 1.9001728], [1.1638076, -1.0545279]]
    np.testing.assert_allclose(logits[:2], expected, atol=1e-4)


@pytest.mark.parametrize("remove_padding", [False, True])
def test_mrpc_op(mrpc_run: functools.partial, remove_padding: bool) -> None:
    result, logits = mrpc_run(floatx="float32", remove_padding=remove_padding)
    check_mrpc_float32(result)
    _, theirs = mrpc_run(use_tensorflow_transformer=True)
    assert logits.shape == theirs.shape == (408, 2)
    assert_close(logits, theirs, "float32", LOGITS)


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
def test_mrpc_half_types(mrpc_run: functools.partial, floatx: str) -> None:
    result, _ = mrpc_run(floatx=floatx, remove_padding=True)
    assert abs(result["eval_accuracy"] - 0.8063725) <= 0.01


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[int, TinyBert]:
    folder = tmp_path_factory.mktemp("tiny")
    return {n: make_tiny_bert(folder / str(n), num_labels=n) for n in (2, 3)}


def lines(*rows: list[str]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def write_task(folder: pathlib.Path, task: str) -> None:
    """Writes five dev and three test examples in a task's own format."""
    pairs = [
        ("the cat sat", "a dog ran"),
        ("it is red", "yes"),
        ("no", "the big dog"),
        ("a cat", "a small cat"),
        ("slow dog", "fast dog"),
    ]
    three = ["contradiction", "entailment", "neutral", "neutral", "entailment"]
    if task == "cola":
        rows = [["x", str(i % 2), "", a] for i, (a, _) in enumerate(pairs)]
        (folder / "dev.tsv").write_text(lines(*rows))
        test = [["0", a] for a, _ in pairs[:3]]
        (folder / "test.tsv").write_text(lines(["index", "sentence"], *test))
    elif task == "mrpc":
        header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
        rows = [header] + [[str(i % 2), "1", "2", a, b] for i, (a, b) in enumerate(pairs)]
        (folder / "dev.tsv").write_text(lines(*rows))
        (folder / "test.tsv").write_text(lines(*rows[:4]))
    elif task == "mnli":
        rows = [["h"] * 10] + [
            [str(i)] + ["x"] * 7 + [a, b, "x", label]
            for i, ((a, b), label) in enumerate(zip(pairs, three, strict=True))
        ]
        (folder / "dev_matched.tsv").write_text(lines(*rows))
        (folder / "test_matched.tsv").write_text(lines(*[row[:10] for row in rows[:4]]))
    else:
        rows = [["language"] + ["h"] * 7] + [
            ["zh", label, "x", "x", "x", "x", a, b]
            for (a, b), label in zip(pairs, three, strict=True)
        ]
        (folder / "xnli.dev.tsv").write_text(lines(*rows))


@pytest.mark.parametrize("task", ["cola", "mrpc", "mnli", "xnli"])
def test_every_task(tiny: dict[int, TinyBert], tmp_path: pathlib.Path, task: str) -> None:
    model = tiny[2 if task in ("cola", "mrpc") else 3]
    write_task(tmp_path, task)
    results = {}
    for name, extra in {
        "op": {"remove_padding": True},
        "tf": {"use_tensorflow_transformer": True},
    }.items():
        out = tmp_path / name
        results[name] = run(
            task_name=task,
            do_eval=True,
            do_predict=task != "xnli",  # google's processor has no test set for it.
            data_dir=tmp_path,
            vocab_file=model.vocab_file,
            bert_config_file=model.config_file,
            init_checkpoint=model.checkpoint,
            max_seq_length=16,
            eval_batch_size=2,  # Five examples: the last batch is smaller.
            predict_batch_size=2,
            output_dir=out,
            output_logits=out / "logits.npy",
            **extra,
        )
        text = (out / "eval_results.txt").read_text()
        keys = re.findall(r"^(\w+) = \S+$", text, re.MULTILINE)
        metric = {"cola": ["eval_mcc"], "mrpc": ["eval_f1"]}.get(task, [])
        assert keys == sorted(["eval_accuracy", "eval_loss", "global_step", "loss", *metric])
    ours, theirs = (np.load(tmp_path / name / "logits.npy") for name in ("op", "tf"))
    assert ours.shape == (5, 2 if task in ("cola", "mrpc") else 3)
    assert_close(ours, theirs, "float32", LOGITS)
    assert abs(results["op"]["eval_loss"] - results["tf"]["eval_loss"]) < 1e-4
    if task != "xnli":
        rows = np.loadtxt(tmp_path / "op" / "test_results.tsv", delimiter="\t", ndmin=2)
        assert rows.shape == (3, ours.shape[1])
        np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)


BAD = [
    ({"int8_mode": 2}, "int8_mode is 2, expected 0: INT8 is not in this version"),
    ({"do_train": True, "floatx": "float16"}, "--do_train trains in float32"),
    ({"do_eval": False}, "nothing to do: give --do_train, --do_eval, --do_predict or"),
    ({"task_name": "sst"}, "--task_name=sst, expected cola, mnli, mrpc, xnli"),
    ({"max_seq_length": 41}, "--max_seq_length=41, expected 1 to 40"),
    ({"max_seq_length": 2}, "--max_seq_length=2, expected at least 3"),
    ({"eval_batch_size": 0}, "--eval_batch_size=0, expected at least 1"),
    ({"use_tpu": True}, "--use_tpu=true"),
    ({"vocab_file": "/none/vocab.txt"}, "--vocab_file=/none/vocab.txt not found"),
    ({"bert_config_file": "/none.json"}, "--bert_config_file=/none.json not found"),
    ({"init_checkpoint": "/none.ckpt"}, "checkpoint /none.ckpt not found"),
    ({"data_dir": "/none"}, "--data_dir=/none is not a folder"),
    ({"use_tensorflow_transformer": True, "remove_padding": True}, "remove_padding needs the op"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_flags(
    tiny: dict[int, TinyBert], tmp_path: pathlib.Path, changes: dict, message: str
) -> None:
    write_task(tmp_path, "mrpc")
    arguments = {
        "task_name": "mrpc",
        "do_eval": True,
        "data_dir": tmp_path,
        "vocab_file": tiny[2].vocab_file,
        "bert_config_file": tiny[2].config_file,
        "init_checkpoint": tiny[2].checkpoint,
        "max_seq_length": 16,
        "output_dir": tmp_path / "out",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        run(**(arguments | changes))


SERVE = """
import sys
import numpy as np
import tensorflow as tf
import fastertransformer_tf
model = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
features = np.load(sys.argv[2])
result = model(**{name: tf.constant(features[name]) for name in features})
np.savez(sys.argv[3], **{name: value.numpy() for name, value in result.items()})
"""


def test_an_exported_model_is_served_elsewhere(
    tiny: dict[int, TinyBert], tmp_path: pathlib.Path
) -> None:
    write_task(tmp_path, "mrpc")
    arguments = {
        "task_name": "mrpc",
        "data_dir": tmp_path,
        "vocab_file": tiny[2].vocab_file,
        "bert_config_file": tiny[2].config_file,
        "init_checkpoint": tiny[2].checkpoint,
        "max_seq_length": 16,
        "output_dir": tmp_path / "out",
        "export_dir": tmp_path / "saved",
    }
    run(**arguments, do_eval=True, output_logits=tmp_path / "logits.npy", remove_padding=True)
    with pytest.raises(ValueError, match="saved exists already, expected a new folder"):
        run(**arguments)
    assert {p.name for p in tmp_path.iterdir()} == {
        "dev.tsv", "test.tsv", "out", "saved", "logits.npy"
    }  # fmt: skip
    values = flags.FlagValues()
    run_classifier_wrap.define_flags(values)
    arguments["export_dir"] = ""
    values(["program", "--do_eval", *(f"--{k}={v}" for k, v in arguments.items())])
    job = run_classifier_wrap.prepare(values)
    features = run_classifier_wrap.make_features(
        job.processor.get_dev_examples(str(tmp_path)), job.labels, 16, job.tokenizer
    )
    del features["label_ids"]
    np.savez(tmp_path / "features.npz", **features)
    command = [tmp_path / "saved", tmp_path / "features.npz", tmp_path / "result.npz"]
    served = subprocess.run(
        [sys.executable, "-c", SERVE, *command],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    result = np.load(tmp_path / "result.npz")
    np.testing.assert_allclose(result["logits"], np.load(tmp_path / "logits.npy"), atol=1e-6)
    np.testing.assert_allclose(result["probabilities"].sum(axis=1), 1, atol=1e-6)


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastertransformer_tf.run_classifier_wrap", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_program_answers_in_one_sentence() -> None:
    result = program("--task_name=mrpc", "--do_eval")
    assert result.returncode == 1
    assert "required flags are missing: --data_dir, --vocab_file" in result.stderr
    assert "Traceback" not in result.stderr


def test_program_prints_a_table(tiny: dict[int, TinyBert], tmp_path: pathlib.Path) -> None:
    write_task(tmp_path, "cola")
    result = program(
        "--task_name=CoLA",
        "--do_eval",
        f"--data_dir={tmp_path}",
        f"--vocab_file={tiny[2].vocab_file}",
        f"--bert_config_file={tiny[2].config_file}",
        f"--init_checkpoint={tiny[2].checkpoint}",
        "--max_seq_length=16",
        f"--output_dir={tmp_path}",
        "--use_tensorflow_transformer",
    )
    assert result.returncode == 0, result.stderr
    for label in ("accuracy", "Matthews correlation", "loss", "examples/s", "ms per batch"):
        assert label in result.stdout
    assert "*** Example ***" not in result.stderr


def test_help_explains_the_flags() -> None:
    result = program("--help")
    assert result.returncode == 0
    for name in ("floatx", "remove_padding", "use_tensorflow_transformer", "eval_batch_size"):
        assert f"--{name}" in result.stdout
