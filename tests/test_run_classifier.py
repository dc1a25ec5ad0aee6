"""run_classifier_wrap: MRPC on a real BERT, all tasks on a tiny one, and its errors."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from conftest import REPOSITORY, shared_path
from tiny_bert import TinyBert, make_tiny_bert
from tolerances import LOGITS, assert_close

from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import writing
from fastertransformer_tf.data import glue, glue_features
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import classification


def run(**arguments: object) -> dict:
    """Runs the program in this process with its own flags."""
    values = flags.FlagValues()
    classification.define_flags(values)
    values(["run_classifier_wrap", *(f"--{k}={v}" for k, v in arguments.items())])
    return classification.run(values)


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
    result, logits = mrpc_run(floatx=floatx, remove_padding=True)
    assert abs(result["eval_accuracy"] - 0.8063725) <= 0.01
    _, exact = mrpc_run(use_tensorflow_transformer=True)
    assert_close(logits, exact, floatx, LOGITS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[int, TinyBert]:
    folder = tmp_path_factory.mktemp("tiny")
    return {n: make_tiny_bert(folder / str(n), num_labels=n) for n in (1, 2, 3)}


def lines(*rows: list[str]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


PAIRS = [
    ("the cat sat", "a dog ran"),
    ("it is red", "yes"),
    ("no", "the big dog"),
    ("a cat", "a small cat"),
    ("slow dog", "fast dog"),
]
_STS_B = "index genre filename year old_index source1 source2 sentence1 sentence2".split()
_PAIR = ["index", "sentence1", "sentence2"]
# GLUE's files: the headers of train and dev, and of test; what else a column holds is "x".
GLUE_COLUMNS = {
    "sst-2": (["sentence", "label"], ["index", "sentence"]),
    "sts-b": ([*_STS_B, "score"], _STS_B),
    "qqp": (
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        ["id", "question1", "question2"],
    ),
    "qnli": (["index", "question", "sentence", "label"], ["index", "question", "sentence"]),
    "rte": ([*_PAIR, "label"], _PAIR),
    "wnli": ([*_PAIR, "label"], _PAIR),
}
SCORES = ["2.500", "0.0", "5", "3.2", "1.75"]


def label_of(task: str, row: int) -> str:
    """The label of a row as `write_task` writes it."""
    return SCORES[row] if task == "sts-b" else glue.TASKS[task].labels[row % 2]


def write_glue(folder: pathlib.Path, task: str) -> None:
    """Writes train, dev and test with GLUE's columns."""
    texts = {"sentence", "question", "question1", "question2", "sentence1", "sentence2"}
    for name, columns in zip(("dev", "test"), GLUE_COLUMNS[task], strict=True):
        rows = [columns]
        for i, (a, b) in enumerate(PAIRS if name == "dev" else PAIRS[:3]):
            row = dict.fromkeys(columns, "x") | {columns[0]: str(i)}
            row |= dict(zip([c for c in columns if c in texts], (a, b), strict=False))
            row |= {c: label_of(task, i) for c in ("label", "score", "is_duplicate") if c in row}
            rows.append(list(row.values()))
        (folder / f"{name}.tsv").write_text(lines(*rows))
    shutil.copy(folder / "dev.tsv", folder / "train.tsv")


def write_task(folder: pathlib.Path, task: str) -> None:
    """Writes five dev and three test examples in a task's own format."""
    if task in GLUE_COLUMNS:
        write_glue(folder, task)
        return
    pairs = PAIRS
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
    elif task in ("mnli", "mnli-mm"):
        kind = "matched" if task == "mnli" else "mismatched"
        rows = [["h"] * 10] + [
            [str(i)] + ["x"] * 7 + [a, b, "x", label]
            for i, ((a, b), label) in enumerate(zip(pairs, three, strict=True))
        ]
        (folder / f"dev_{kind}.tsv").write_text(lines(*rows))
        (folder / f"test_{kind}.tsv").write_text(lines(*[row[:10] for row in rows[:4]]))
    else:
        rows = [["language"] + ["h"] * 7] + [
            ["zh", label, "x", "x", "x", "x", a, b]
            for (a, b), label in zip(pairs, three, strict=True)
        ]
        (folder / "xnli.dev.tsv").write_text(lines(*rows))


@pytest.mark.parametrize("task", glue.TASKS)
def test_every_task(tiny: dict[int, TinyBert], tmp_path: pathlib.Path, task: str) -> None:
    outputs = glue.TASKS[task].num_outputs
    model = tiny[outputs]
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
            do_predict=task != "xnli",  # google's format has no test set for it.
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
        metrics = {
            "cola": ["eval_accuracy", "eval_mcc"],
            "mrpc": ["eval_accuracy", "eval_f1"],
            "qqp": ["eval_accuracy", "eval_f1"],
            "sts-b": ["eval_pearson", "eval_spearman"],
        }.get(task, ["eval_accuracy"])
        assert keys == sorted(["eval_loss", "global_step", "loss", *metrics])
    ours, theirs = (np.load(tmp_path / name / "logits.npy") for name in ("op", "tf"))
    assert ours.shape == (5, outputs)
    assert_close(ours, theirs, "float32", LOGITS)
    assert abs(results["op"]["eval_loss"] - results["tf"]["eval_loss"]) < 1e-4
    if task != "xnli":
        rows = np.loadtxt(tmp_path / "op" / "test_results.tsv", delimiter="\t", ndmin=2)
        assert rows.shape == (3, outputs)
        if task == "sts-b":  # The first texts of both sets are the same.
            np.testing.assert_allclose(rows, ours[:3], atol=1e-5)
        else:
            np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("task", GLUE_COLUMNS)
def test_glues_columns(tmp_path: pathlib.Path, task: str) -> None:
    write_task(tmp_path, task)
    for which, count in ((glue.TRAIN, 5), (glue.DEV, 5), (glue.TEST, 3)):
        examples = glue.TASKS[task].examples(str(tmp_path), which)
        pairs = [(a, None if task == "sst-2" else b) for a, b in PAIRS[:count]]
        assert [(e.text_a, e.text_b) for e in examples] == pairs
        labels = [label_of(task, row) for row in range(count)]
        if which == glue.TEST:
            labels = ["0" if task == "sts-b" else label_of(task, 0)] * count
        assert [e.label for e in examples] == labels


def test_qqps_broken_rows_are_counted_and_no_others_are_taken(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    write_task(tmp_path, "qqp")
    for name in ("dev", "test"):
        path = tmp_path / f"{name}.tsv"
        path.write_text(path.read_text() + "9\tbroken\n" * 2)
    assert len(glue.TASKS["qqp"].get_dev_examples(str(tmp_path))) == 5
    assert "dev.tsv: 2 of 7 rows are left out, for they have fewer than 6 columns" in (
        capsys.readouterr().out
    )
    # A prediction belongs to its row: none may be missing.
    with pytest.raises(UserError, match=r"test.tsv, line 5: 2 columns, expected at least 3"):
        glue.TASKS["qqp"].get_test_examples(str(tmp_path))


@pytest.mark.parametrize("score", ["", "five", "nan", "inf"])
def test_a_score_is_a_number(tmp_path: pathlib.Path, score: str) -> None:
    write_task(tmp_path, "sts-b")
    path = tmp_path / "dev.tsv"
    path.write_text(path.read_text().replace("3.2", score))
    with pytest.raises(UserError, match=f'line 5: the label is "{score}", expected a number'):
        glue.TASKS["sts-b"].get_dev_examples(str(tmp_path))


def write_own(folder: pathlib.Path, header: str, *rows: str) -> None:
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows]) + "\n")


def test_an_own_task_is_one_of_glue_with_other_columns(
    tiny: dict[int, TinyBert], tmp_path: pathlib.Path
) -> None:
    write_task(tmp_path, "mrpc")
    arguments = mrpc_arguments(tiny[2], tmp_path) | {"do_eval": True, "do_predict": True}
    expected = run(**arguments)
    predicted = (tmp_path / "out" / "test_results.tsv").read_text()
    rows = [(str(i % 2), a, b) for i, (a, b) in enumerate(PAIRS)]
    own = arguments | {"task_name": "tsv", "labels": "no,yes", "data_dir": tmp_path / "own"}
    (tmp_path / "own").mkdir()
    words = [(a, ("no", "yes")[int(label)], b) for label, a, b in rows]
    write_own(tmp_path / "own", "text_a\tlabel\ttext_b", *map("\t".join, words))
    (tmp_path / "own" / "test.tsv").write_text(
        "\n".join(["text_b\ttext_a", *(f"{b}\t{a}" for _, a, b in rows[:3])])
    )
    del expected["eval_f1"]
    assert run(**own) == expected
    assert (tmp_path / "out" / "test_results.tsv").read_text() == predicted
    write_own(tmp_path / "own", "class\tid\tleft\tright", *("\t".join([words[i][1], "7", a, b])
              for i, (_, a, b) in enumerate(rows)))  # fmt: skip
    names = {"text_a_column": "left", "text_b_column": "right", "label_column": "class"}
    assert run(**own | names) == expected
    trained = run(**own | names, do_train=True, train_batch_size=5, num_train_epochs=2)
    assert trained["global_step"] == 2 and trained["eval_loss"] != expected["eval_loss"]


@pytest.mark.parametrize(
    ("header", "row", "flags_", "message"),
    [
        ("text_a\tlabel", "the cat\tno", {"labels": "no"}, "--labels=no, expected at least two"),
        ("text_a\tlabel", "the cat\tno", {"labels": "no,no"}, "--labels=no,no, expected at least"),
        ("text_a\tlabel", "the cat\tno", {"labels": ""}, "required flags are missing: --labels"),
        (
            "text\tlabel",
            "a\tno",
            {},
            "dev.tsv, line 1 names 0 columns 'text_a', expected one among",
        ),
        ("text_a\tlabel\tlabel", "a\tno\tno", {}, "line 1 names 2 columns 'label', expected one"),
        ("text_a\tlabel", "a\tno", {"text_b_column": "b"}, "line 1 names 0 columns 'b'"),
        ("text_a\tlabel", "the\tcat\tno", {}, "dev.tsv, line 2: 3 columns, expected 2 columns"),
        ("text_a\tlabel", "the cat", {}, "dev.tsv, line 2: 1 column, expected 2 columns"),
        ("text_a\tlabel", "", {}, "dev.tsv, line 2: a blank line, expected 2 columns"),
        ("text_a\tlabel", "a\tmaybe", {}, 'line 2: the label is "maybe", expected no or yes'),
        (
            "text_a\tlabel",
            "a\tno",
            {"task_name": "mrpc"},
            "--labels is of --task_name=tsv, but --t",
        ),
    ],
)
def test_an_own_tasks_mistakes(
    tiny: dict[int, TinyBert],
    tmp_path: pathlib.Path,
    header: str,
    row: str,
    flags_: dict,
    message: str,
) -> None:
    write_own(tmp_path, header, row)
    arguments = mrpc_arguments(tiny[2], tmp_path) | {"task_name": "tsv", "labels": "no,yes"}
    with pytest.raises(UserError, match=re.escape(message)):
        run(**arguments | {"do_eval": True} | flags_)


def test_an_own_tasks_sets_are_alike(tiny: dict[int, TinyBert], tmp_path: pathlib.Path) -> None:
    write_own(tmp_path, "text_a\ttext_b\tlabel", "the cat\ta dog\tno")
    (tmp_path / "test.tsv").write_text("text_a\nthe cat\n")
    arguments = mrpc_arguments(tiny[2], tmp_path) | {"task_name": "tsv", "labels": "no,yes"}
    with pytest.raises(UserError, match="dev has pairs, test has single texts, expected the same"):
        run(**arguments, do_eval=True, do_predict=True)
    (tmp_path / "dev.tsv").write_text("")
    with pytest.raises(UserError, match="dev.tsv is empty, expected a first line that names the c"):
        run(**arguments, do_eval=True)


@pytest.mark.parametrize("scores", [["2.5"], ["2.5"] * 3])
def test_a_correlation_without_a_meaning_is_nan(
    tiny: dict[int, TinyBert], tmp_path: pathlib.Path, scores: list[str]
) -> None:
    rows = [["x"] * 7 + ["the cat", f"a dog {'ran ' * i}", one] for i, one in enumerate(scores)]
    (tmp_path / "dev.tsv").write_text(lines([*_STS_B, "score"], *rows))
    found = run(**mrpc_arguments(tiny[1], tmp_path) | {"task_name": "sts-b", "do_eval": True})
    assert np.isnan(found["eval_pearson"]) and np.isnan(found["eval_spearman"])
    assert np.isfinite(found["eval_loss"])


def test_a_regression_learns_scores(tmp_path: pathlib.Path) -> None:
    tiny = make_tiny_bert(tmp_path / "model", num_labels=1, hidden_dropout_prob=0.0)
    write_task(tmp_path, "sts-b")
    common = mrpc_arguments(tiny, tmp_path) | {"task_name": "STS-B", "do_eval": True}
    logits = tmp_path / "logits.npy"
    before = run(**common, output_logits=logits)
    found = np.load(logits)[:, 0].astype(np.float64)
    scores = np.array([float(score) for score in SCORES])
    assert before["eval_loss"] == pytest.approx(np.mean((found - scores) ** 2), rel=1e-5)
    assert before["eval_pearson"] == pytest.approx(np.corrcoef(found, scores)[0, 1], abs=1e-5)
    ranks = np.corrcoef(found.argsort().argsort(), scores.argsort().argsort())[0, 1]
    assert before["eval_spearman"] == pytest.approx(ranks, abs=1e-5)
    after = run(
        **common, do_train=True, train_batch_size=5, num_train_epochs=60, learning_rate=3e-3,
        remove_padding=True,
    )  # fmt: skip
    assert after["global_step"] == 60
    assert after["eval_loss"] < 0.1 * before["eval_loss"] and after["eval_pearson"] > 0.9


BAD = [
    ({"int8_mode": 4}, "int8_mode is 4, expected 0, 1, 2 or 3"),
    ({"int8_mode": 2}, "--int8_mode=2 found a float checkpoint"),
    ({"fp8_mode": 2}, "fp8_mode is 2, expected 0 or 1"),
    ({"fp8_mode": 1}, "--fp8_mode=1 found a float checkpoint"),
    ({"fp8_mode": 1, "int8_mode": 1}, "fp8_mode is 1 and int8_mode 1, expected one of them"),
    ({"do_train": True, "floatx": "float16"}, "--do_train trains float32 weights"),
    ({"do_eval": False}, "nothing to do: give --do_train, --do_calib, --do_eval, --do_predict"),
    ({"task_name": "sst"}, "--task_name=sst, expected cola, mnli, mnli-mm, mrpc, xnli, sst-2,"),
    ({"max_seq_length": 41}, "--max_seq_length=41, expected 1 to 40"),
    ({"max_seq_length": 2}, "--max_seq_length=2, expected at least 3"),
    ({"eval_batch_size": 0}, "--eval_batch_size=0, expected at least 1"),
    ({"use_tpu": True}, "--use_tpu=true"),
    ({"vocab_file": "/none/vocab.txt"}, "--vocab_file=/none/vocab.txt not found"),
    ({"bert_config_file": "/none.json"}, "--bert_config_file=/none.json not found"),
    ({"init_checkpoint": "/none.ckpt"}, "checkpoint /none.ckpt not found"),
    ({"data_dir": "/none"}, "--data_dir=/none is not a folder"),
    ({"use_tensorflow_transformer": True, "remove_padding": True}, "remove_padding needs the op"),
    (
        {"use_tensorflow_transformer": True, "allow_gemm_test": True},
        "--allow_gemm_test is of the op",
    ),
    ({"task_name": "xnli", "do_predict": True}, "--task_name=xnli has no test data in google's"),
    ({"do_predict": True, "predict_batch_size": -1}, "--predict_batch_size=-1, expected at least"),
    (
        {"output_dir": "gs://b/out"},
        "--output_dir=gs://b/out is a URL, expected a path of this mach",
    ),
    ({"vocab_file": "gs://b/v.txt"}, "--vocab_file=gs://b/v.txt is a URL"),
    ({"data_dir": "hdfs://b"}, "--data_dir=hdfs://b is a URL"),
    ({"output_logits": "/"}, "--output_logits=/ is a folder, expected a file"),
    ({"output_logits": "/dev/null/x"}, "--output_logits=/dev/null/x: /dev/null cannot be written"),
    ({"export_dir": "/proc/x/saved"}, "--export_dir=/proc/x/saved: /proc/x cannot be written to"),
    ({"output_dir": "/proc/x"}, "--output_dir=/proc/x: /proc/x cannot be written to"),
    ({"vocab_file": "/"}, "--vocab_file=/ is a folder, expected a file"),
    ({"do_train": True}, "has no train data of mrpc"),
    ({"do_train": True, "learning_rate": -1}, "has no train data of mrpc"),
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


def test_what_is_beside_the_checkpoint_needs_no_flag(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    write_task(tmp_path, "mrpc")
    tiny = make_tiny_bert(tmp_path / "model")
    whole = mrpc_arguments(tiny, tmp_path) | {"do_eval": True}
    expected = run(**whole)
    bare = {k: v for k, v in whole.items() if k not in ("vocab_file", "bert_config_file")}
    capsys.readouterr()
    for checkpoint in (tiny.folder, tiny.checkpoint):
        assert run(**bare | {"init_checkpoint": checkpoint}) == expected
        shown = capsys.readouterr().out
        assert f"vocab_file: {tiny.vocab_file} (beside --init_checkpoint)" in shown
        assert f"bert_config_file: {tiny.config_file} (beside --init_checkpoint)" in shown
        assert f"checkpoint: {tiny.checkpoint} (--init_checkpoint)" in shown
    # A flag goes before the file that is there.
    assert run(**bare | {"bert_config_file": shutil.copy(tiny.config_file, tmp_path)}) == expected
    assert "bert_config_file:" not in capsys.readouterr().out
    pathlib.Path(tiny.vocab_file).unlink()
    with pytest.raises(UserError, match="has no vocab.txt beside it: give --vocab_file, for"):
        run(**bare)
    with pytest.raises(UserError, match="flags are missing: --vocab_file, --bert_config_file"):
        run(**{k: v for k, v in bare.items() if k != "init_checkpoint"})
    with pytest.raises(FileNotFoundError, match="checkpoint /none/model.ckpt not found"):
        run(**bare | {"init_checkpoint": "/none/model.ckpt"})


def test_the_case_of_a_folders_name_is_checked(tmp_path: pathlib.Path) -> None:
    write_task(tmp_path, "mrpc")
    tiny = make_tiny_bert(tmp_path / "cased_L-12_H-768_A-12")
    for file in tiny.folder.glob("model.ckpt.*"):
        file.rename(file.with_name(file.name.replace("model", "bert_model")))
    with pytest.raises(UserError, match="--do_lower_case=true does not go with --init_checkpoint="):
        run(**mrpc_arguments(tiny, tmp_path) | {"do_eval": True, "init_checkpoint": tiny.folder})


def google_examples(task: str, which: str, folder: pathlib.Path) -> list[dict]:
    module = google_bert.run_classifier()
    processor = getattr(module, f"{task.capitalize()}Processor")()
    examples = getattr(processor, f"get_{which}_examples")(str(folder))
    return [{k: v for k, v in vars(e).items() if k != "guid"} for e in examples]


@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "xnli"])
def test_the_same_examples_as_google(tmp_path: pathlib.Path, task: str) -> None:
    write_task(tmp_path, task)
    if task == "xnli":
        (tmp_path / "multinli").mkdir()
        rows = [["premise", "hypo", "label"], ["a", "b", "contradictory"], ["c", "d", "neutral"]]
        (tmp_path / "multinli" / "multinli.train.zh.tsv").write_text(lines(*rows))
        dev = tmp_path / "xnli.dev.tsv"
        dev.write_text(dev.read_text() + lines(["en", "neutral", "x", "x", "x", "x", "no", "no"]))
        splits = ["train", "dev"]
    else:
        for file in list(tmp_path.glob("dev*.tsv")):
            shutil.copy(file, tmp_path / "train.tsv")
        file = tmp_path / "train.tsv"
        # Quotes are characters, a last line may end without \n and lines with \r\n.
        file.write_bytes(file.read_bytes().replace(b"the cat", b'"the c\xc3\xa1t').replace(
            b"\n", b"\r\n").removesuffix(b"\r\n"))  # fmt: skip
        splits = ["train", "dev", "test"]
    assert (
        list(glue.TASKS[task].labels)
        == google_bert.run_classifier().__dict__[f"{task.capitalize()}Processor"]().get_labels()
    )
    for which in splits:
        ours = glue.TASKS[task].examples(str(tmp_path), which)
        theirs = google_examples(task, which, tmp_path)
        assert [{k: v for k, v in vars(e).items() if k != "guid"} for e in ours] == theirs
        assert len(ours) >= 2


MRPC_HEAD = b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
MRPC_ROW = b"1\t1\t2\tthe cat\ta dog\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MRPC_HEAD + MRPC_ROW + b"\n", "line 3: a blank line, expected at least 5 columns"),
        (MRPC_HEAD + b"\r\n" + MRPC_ROW, "line 2: a blank line"),
        (MRPC_HEAD + MRPC_ROW + b"1\t1\t2\tone\n", "line 3: 4 columns, expected at least 5"),
        (
            MRPC_HEAD + MRPC_ROW.replace(b"\t", b","),
            "line 2: 1 column, expected at least 5 columns",
        ),
        (MRPC_HEAD + MRPC_ROW + b"yes" + MRPC_ROW, 'line 3: the label is "yes1", expected 0 or 1'),
        (MRPC_HEAD + MRPC_ROW + b"1\t1\t2\t\xff\tb\n", "line 3: the byte 0xff is not UTF-8"),
        (MRPC_HEAD, "holds no example, expected at least one row"),
        (b"", "holds no example"),
        ("x\ty".encode("utf-16"), "line 1: the byte 0xff is not UTF-8"),
    ],
)
def test_a_wrong_row_is_refused_with_file_and_line(
    tmp_path: pathlib.Path, content: bytes, message: str
) -> None:
    file = tmp_path / "dev.tsv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        glue.TASKS["mrpc"].get_dev_examples(str(tmp_path))
    assert str(file) in str(caught.value)


def test_odd_rows_that_are_right(tiny: dict[int, TinyBert], tmp_path: pathlib.Path) -> None:
    huge = b"1\t1\t2\t" + b"a" * 1_000_000 + b"\tthe cat\n"
    odd = [b'0\t1\t2\t"the\ta "cat\tx\n', b"1\t1\t2\tthe\0 cat\t\n", huge, MRPC_ROW]
    (tmp_path / "dev.tsv").write_bytes(b"\xef\xbb\xbf" + MRPC_HEAD + b"".join(odd))
    out = tmp_path / "out"
    run(**mrpc_arguments(tiny[2], tmp_path), do_eval=True, output_logits=out / "l.npy")
    assert np.load(out / "l.npy").shape == (4, 2)
    tokenizer = google_bert.tokenization().FullTokenizer(tiny[2].vocab_file, True)
    examples = glue.TASKS["mrpc"].get_dev_examples(str(tmp_path))
    features = glue_features.make_features(examples, ["0", "1"], 16, tokenizer)
    unknown, the, cat = tokenizer.convert_tokens_to_ids(["[UNK]", "the", "cat"])
    assert features["input_ids"][2, :6].tolist() == [2, unknown, 3, the, cat, 3]
    assert features["input_ids"][1, :5].tolist() == [2, the, cat, 3, 0]


def mrpc_arguments(model: TinyBert, folder: pathlib.Path) -> dict[str, object]:
    return {
        "task_name": "mrpc",
        "data_dir": folder,
        "vocab_file": model.vocab_file,
        "bert_config_file": model.config_file,
        "init_checkpoint": model.checkpoint,
        "max_seq_length": 16,
        "output_dir": folder / "out",
    }


@pytest.fixture
def training_arguments(tmp_path: pathlib.Path) -> dict[str, object]:
    """Flags of a training of ten steps over 40 pairs, with a model of its own."""
    model = make_tiny_bert(tmp_path / "model")
    rng = np.random.default_rng(5)
    words = "the a cat dog sat ran fast slow big small".split()
    rows = [["Quality", "1", "2", "#1 String", "#2 String"]]
    for i in range(40):
        first, second = (" ".join(rng.choice(words, rng.integers(2, 6))) for _ in range(2))
        rows.append([str(i % 2), "1", "2", first, second])
    (tmp_path / "train.tsv").write_text(lines(*rows))
    (tmp_path / "dev.tsv").write_text(lines(*rows[:9]))
    return mrpc_arguments(model, tmp_path) | {
        "do_train": True,
        "train_batch_size": 4,
        "num_train_epochs": 1,
        "save_checkpoints_steps": 2,
        "learning_rate": 1e-3,
    }


def variables(prefix: pathlib.Path | str) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def program_of(arguments: dict[str, object], **options: object) -> subprocess.Popen[str]:
    flags_of = [f"--{name}={value}" for name, value in arguments.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "fastertransformer_tf.run_classifier_wrap", *flags_of],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def test_training_killed_moved_and_gone_on_with(
    tmp_path: pathlib.Path, training_arguments: dict[str, object]
) -> None:
    out = tmp_path / "out"
    whole = training_arguments | {"output_dir": tmp_path / "whole"}
    run(**whole)
    long = training_arguments | {"num_train_epochs": 100}
    process = program_of(long)
    while not (out / "model.ckpt-4.index").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads((out / "training.json").read_text())["num_train_steps"] == 1000
    with pytest.raises(UserError, match=r"num_train_steps 1000 \(now 10\)"):
        run(**training_arguments)
    # The short training, as a kill at step 5 leaves it, in a folder that is moved then.
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "whole", moved)
    state = 'model_checkpoint_path: "model.ckpt-4"\n'
    for step in (2, 4):
        state += f'all_model_checkpoint_paths: "model.ckpt-{step}"\n'
    (moved / "checkpoint").write_text(state)
    (moved / "model.ckpt-6.index").unlink()
    run(**training_arguments | {"output_dir": moved})
    expected, resumed = (
        variables(folder / "model.ckpt-10") for folder in (tmp_path / "whole", moved)
    )
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def change_vocabulary(arguments: dict[str, object]) -> None:
    file = pathlib.Path(str(arguments["vocab_file"]))
    file.write_text(file.read_text().replace("cat\ndog", "dog\ncat"))


def change_config(arguments: dict[str, object]) -> None:
    file = pathlib.Path(str(arguments["bert_config_file"]))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_dropout_prob": 0.2}))


def change_data(arguments: dict[str, object]) -> None:
    file = pathlib.Path(str(arguments["data_dir"])) / "train.tsv"
    file.write_text(file.read_text().replace("fast", "slow"))


def change_checkpoint(arguments: dict[str, object]) -> None:
    prefix = str(arguments["init_checkpoint"])
    weights = variables(prefix)
    weights["bert/pooler/dense/bias"][0] += 1
    writing.save_checkpoint(prefix, weights)


def change_task(arguments: dict[str, object]) -> None:
    rows = ["x\t1\t\tthe cat\n"] * 40
    (pathlib.Path(str(arguments["data_dir"])) / "train.tsv").write_text("".join(rows))
    arguments["task_name"] = "cola"


def test_a_training_goes_on_with_the_same_inputs_only(
    tmp_path: pathlib.Path, training_arguments: dict[str, object]
) -> None:
    run(**training_arguments)
    # Elsewhere, but the same: nothing is left to do.
    inputs = ("model", "train.tsv", "dev.tsv")
    for number, (change, named) in enumerate(
        [
            (dict, None),
            ({"save_checkpoints_steps": 3}, None),
            (change_vocabulary, "vocab_file"),
            (change_config, "bert_config hidden_dropout_prob"),
            (change_data, "features"),
            (change_checkpoint, "init_checkpoint"),
            (change_task, "task"),
            ({"do_lower_case": False}, "do_lower_case"),
            ({"max_seq_length": 15}, "max_seq_length"),
            ({"learning_rate": 2e-3}, "learning_rate"),
            ({"train_batch_size": 5}, "train_batch_size"),
            ({"warmup_proportion": 0.5}, "warmup_proportion"),
        ]
    ):
        copied = tmp_path / f"copy{number}"
        copied.mkdir()
        for name in inputs:
            copy = shutil.copytree if name == "model" else shutil.copy
            copy(tmp_path / name, copied / name)
        arguments: dict[str, object] = {
            name: str(value).replace(str(tmp_path), str(copied))
            for name, value in training_arguments.items()
        }
        arguments["output_dir"] = training_arguments["output_dir"]
        if callable(change):
            change(arguments)
        else:
            arguments |= change
        if named is None:
            assert run(**arguments) == {}
        else:
            with pytest.raises(UserError, match=rf"out holds a training with .*{named} "):
                run(**arguments)


def test_evaluation_takes_what_was_trained_and_says_so(
    tmp_path: pathlib.Path, training_arguments: dict[str, object], capsys: pytest.CaptureFixture
) -> None:
    trained = run(**training_arguments, do_eval=True)
    assert trained["global_step"] == 10
    arguments = training_arguments | {"do_train": False, "do_eval": True}
    capsys.readouterr()
    again = run(**arguments)
    assert again == trained
    shown = capsys.readouterr().out
    assert f"checkpoint: {tmp_path}/out/model.ckpt-10 (the latest trained in --output_dir," in shown
    fresh = run(**arguments | {"output_dir": tmp_path / "fresh"})
    assert fresh["global_step"] == 0 and fresh["eval_loss"] != trained["eval_loss"]
    shown = capsys.readouterr().out
    assert f"checkpoint: {arguments['init_checkpoint']} (--init_checkpoint)" in shown
    # A folder means the latest checkpoint in it.
    folder = run(
        **arguments | {"output_dir": tmp_path / "fresh", "init_checkpoint": tmp_path / "out"}
    )
    assert folder["global_step"] == 10 and folder["eval_loss"] == trained["eval_loss"]


def test_of_two_trainings_in_one_folder_the_second_is_refused(
    tmp_path: pathlib.Path, training_arguments: dict[str, object]
) -> None:
    rates = [1e-6, 1e-3]
    arguments = training_arguments | {"num_train_epochs": 20, "save_checkpoints_steps": 50}
    processes = [program_of(arguments | {"learning_rate": rate}) for rate in rates]
    ends = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1], ends
    refused = ends[codes.index(1)][1].splitlines()
    (line,) = [line for line in refused if line.startswith("run_classifier_wrap: ")]
    assert "another training is running in" in line or "holds a training with learning_rate" in line
    settings = json.loads((tmp_path / "out" / "training.json").read_text())
    assert settings["learning_rate"] == rates[codes.index(0)]


def test_a_train_set_without_a_step_is_refused_before_anything(
    tmp_path: pathlib.Path, training_arguments: dict[str, object]
) -> None:
    for changes, message in (
        ({"train_batch_size": 400}, "make no step of train_batch_size 400"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"num_train_epochs": -1}, "num_train_epochs is -1"),
        ({"do_predict": True}, "has no test data of mrpc"),
        ({"save_checkpoints_steps": 0}, "--save_checkpoints_steps=0, expected at least 1"),
    ):
        with pytest.raises((UserError, FileNotFoundError), match=message):
            run(**training_arguments | changes)
    assert not (tmp_path / "out").exists()


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
    classification.define_flags(values)
    arguments["export_dir"] = ""
    values(["program", "--do_eval", *(f"--{k}={v}" for k, v in arguments.items())])
    job = classification.prepare(values)
    features = glue_features.make_features(
        job.task.get_dev_examples(str(tmp_path)), job.task.get_labels(), 16, job.tokenizer
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
    # So do loaders of TensorFlow 1, and no weight is in the graph.
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "saved"))
        signature = loaded.signature_def["serving_default"]
        feeds = {signature.inputs[name].name: value for name, value in features.items()}
        logits = session.run(signature.outputs["logits"].name, feeds)
        names = {variable.op.name for variable in tf.compat.v1.global_variables()}
        constants = [op.get_attr("value") for op in graph.get_operations() if op.type == "Const"]
    np.testing.assert_allclose(logits, np.load(tmp_path / "logits.npy"), atol=1e-6)
    assert names == set(tiny[2].weights)
    assert (tmp_path / "saved" / "variables" / "variables.index").exists()
    floats = [c for c in constants if tf.as_dtype(c.dtype).is_floating]
    assert all(c.ByteSize() < 200 for c in floats)


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
