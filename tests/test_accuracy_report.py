"""accuracy_report: what it tells is what the runners tell; cells are kept, and only good ones."""

import json

import numpy as np
import pytest
from absl import flags
from tiny_bert import make_tiny_bert, make_tiny_squad

from fastertransformer_tf.checkpoints import reading, writing
from fastertransformer_tf.data import squad_scores
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import (
    accuracy,
    accuracy_tasks,
    calibration,
    classification,
    question_answering,
)
from fastertransformer_tf.quantization import conversion


def _run(program, **arguments):
    values = flags.FlagValues()
    program.define_flags(values)
    given = [(k, v) for k, vs in arguments.items() for v in (vs if isinstance(vs, list) else [vs])]
    values(["program", *(f"--{k}={v}" for k, v in given)])
    return program.run(values)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models of both tasks, quantized, and the arguments that report on them."""
    folder = tmp_path_factory.mktemp("models")
    mrpc = make_tiny_bert(folder / "mrpc")
    pairs = [("the cat sat", "a dog ran"), ("it is red", "yes"), ("no", "the big dog")]
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    rows = [header] + [[str(i % 2), "1", "2", *pairs[i % 3]] for i in range(9)]
    for name in ("train", "dev"):
        lines = ("\t".join(row) + "\n" for row in rows)
        (folder / "mrpc" / f"{name}.tsv").write_text("".join(lines))
    squad, squad_file = make_tiny_squad(folder)
    content = json.loads(squad_file.read_text())
    (paragraph,) = content["data"][0]["paragraphs"]
    paragraph["qas"].append(paragraph["qas"][0] | {"id": "q2", "question": "was it big"})
    squad_file.write_text(json.dumps(content))
    common = {"do_calib": True, "calib_method": "max", "train_batch_size": 2, "calib_batch": 1}
    for name, tiny, program, data in (
        ("mrpc", mrpc, classification, {"task_name": "mrpc", "data_dir": folder / "mrpc"}),
        ("squad", squad, question_answering, {"train_file": squad_file, "max_query_length": 8}),
    ):
        _run(
            program, **common, **data, max_seq_length=24, vocab_file=tiny.vocab_file,
            bert_config_file=tiny.config_file, init_checkpoint=tiny.checkpoint,
            output_dir=folder / f"{name}_calibrated",
        )  # fmt: skip
        calibrated = folder / f"{name}_calibrated" / calibration.CHECKPOINT
        conversion.quantize_checkpoint(calibrated, folder / f"{name}_int8", 2)
        other = reading.Checkpoint(calibrated)
        tensors = {key: np.asarray(other.load(key)) for key in other.shapes}
        head = "cls/squad/output_bias" if name == "squad" else "output_bias"
        tensors[head] = tensors[head] + np.float32([3, -3])
        writing.save_checkpoint(folder / f"{name}_moved", conversion.quantize_tensors(tensors))
    return {
        "mrpc_data": folder / "mrpc",
        "mrpc_model": folder / "mrpc",
        "mrpc_ptq2": folder / "mrpc_int8",
        "mrpc_distilled2": [folder / "mrpc_int8", folder / "mrpc_moved"],
        "mrpc_max_seq_length": 12,
        "squad_data": squad_file,
        "squad_model": folder / "tiny",
        "squad_qat1": folder / "squad_int8",
        "squad_max_seq_length": 24,
        "squad_max_query_length": 8,
        "batch_size": 4,
    }


MRPC_ROWS, SQUAD_ROWS = 6 + 2 + 2, 6 + 2
CELLS = MRPC_ROWS + 2 + SQUAD_ROWS


@pytest.fixture(scope="module")
def report(models, tmp_path_factory):
    """A whole report, which no test changes, and its folder."""
    out = tmp_path_factory.mktemp("report")
    return _run(accuracy, **models, output_dir=out), out


def _rows(report, **wanted):
    return [row for row in report["rows"] if all(row[k] == v for k, v in wanted.items())]


def test_every_row_is_there(report):
    report, out = report
    assert json.loads((out / "accuracy_report.json").read_text()) == report
    assert len(_rows(report, task="mrpc")) == MRPC_ROWS
    assert len(_rows(report, task="squad")) == SQUAD_ROWS
    assert len(list((out / "cells").iterdir())) == CELLS
    for task in ("mrpc", "squad"):
        found = [(r["floatx"], r["remove_padding"]) for r in _rows(report, task=task, kind="float")]
        types = ("float32", "float16", "bfloat16")
        assert found == [(floatx, removed) for floatx in types for removed in (False, True)]
    for row in report["rows"]:
        assert row["examples_per_second"] > 0
        padded = dict(row, remove_padding=not row["remove_padding"])
        (other,) = _rows(
            report, **{k: padded[k] for k in ("task", "kind", "floatx", "remove_padding")}
        )
        assert other["metrics"] == pytest.approx(row["metrics"])
        assert other["checkpoint_bytes"] == row["checkpoint_bytes"]
    table = (out / "accuracy_report.md").read_text()
    assert table.count("\n| ") == MRPC_ROWS + SQUAD_ROWS + 2 * 2
    assert "MRPC: all 9 pairs of dev.tsv" in table and "SQuAD: all 2 questions" in table
    for left_out in ("mrpc, PTQ, int8_mode 1: no --mrpc_ptq1", "no --squad_distilled2"):
        assert left_out in table
    assert "no --mrpc_distilled2" not in table
    assert (out / "accuracy_report.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_are_those_of_the_checkpoints(models, report):
    sizes = {
        (row["kind"], row["floatx"]): row["checkpoint_bytes"]
        for row in _rows(report[0], task="mrpc")
    }
    source = reading.Checkpoint(models["mrpc_model"] / "model.ckpt")
    numbers = sum(int(np.prod(shape)) for shape in source.shapes.values())
    assert sizes["float", "float32"] == 4 * numbers
    assert sizes["float", "float16"] == sizes["float", "bfloat16"] == 2 * numbers
    quantized = reading.Checkpoint(models["mrpc_ptq2"])
    held = {n: int(np.prod(s)) * quantized.dtypes[n].size for n, s in quantized.shapes.items()}
    del held["bert/encoder/int8_format"]  # No variable of the model.
    assert sizes["ptq", "float32"] == sum(held.values()) < 0.7 * 4 * numbers


def test_scores_are_those_of_the_runners(models, report, tmp_path):
    common = {
        "vocab_file": models["mrpc_model"] / "vocab.txt",
        "bert_config_file": models["mrpc_model"] / "bert_config.json",
    }
    found = _run(
        classification, **common, task_name="mrpc", data_dir=models["mrpc_data"], do_eval=True,
        init_checkpoint=models["mrpc_distilled2"][1], int8_mode=2, max_seq_length=12,
        output_dir=tmp_path / "mrpc",
    )  # fmt: skip
    rows = _rows(report[0], task="mrpc", kind="distilled")
    first, second = (cell["metrics"] for cell in rows[0]["cells"])
    assert second == {"accuracy": found["eval_accuracy"], "f1": found["eval_f1"]}
    assert first != second  # Two checkpoints, and the mean of both.
    for name in first:
        assert rows[0]["metrics"][name] == pytest.approx((first[name] + second[name]) / 2)
    (ptq, _) = _rows(report[0], task="mrpc", kind="ptq")
    assert ptq["metrics"] == first
    _run(
        question_answering, **common, do_predict=True, predict_file=models["squad_data"],
        init_checkpoint=models["squad_qat1"], int8_mode=1, max_seq_length=24, max_query_length=8,
        output_dir=tmp_path / "squad",
    )  # fmt: skip
    scores = squad_scores.evaluate_files(
        models["squad_data"], tmp_path / "squad" / "predictions.json"
    )
    for row in _rows(report[0], task="squad", kind="qat"):
        assert row["metrics"] == scores and row["int8_mode"] == 1


def _counted(monkeypatch, stop_after=None):
    """Lets the tasks note what they measure, and be killed before one cell more."""
    measured = []
    for task in (accuracy_tasks.Mrpc, accuracy_tasks.Squad):

        def measure(self, source, options, batch_size, original=task.measure):
            if len(measured) == stop_after:
                raise KeyboardInterrupt
            measured.append((self.name, source.path, options))
            return original(self, source, options, batch_size)

        monkeypatch.setattr(task, "measure", measure)
    return measured


def test_a_killed_report_goes_on(models, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        first = _counted(context, stop_after=5)
        with pytest.raises(KeyboardInterrupt):
            _run(accuracy, **models, output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]
    second = _counted(monkeypatch)
    whole = _run(accuracy, **models, output_dir=tmp_path)
    assert len(first) == 5 and len(second) == CELLS - 5
    assert len(whole["rows"]) == MRPC_ROWS + SQUAD_ROWS
    again = _run(accuracy, **models, output_dir=tmp_path)
    assert len(second) == CELLS - 5 and again["rows"] == whole["rows"]


def test_only_what_changed_is_measured_again(models, tmp_path, monkeypatch):
    mrpc = {key: value for key, value in models.items() if not key.startswith("squad")}
    measured = _counted(monkeypatch)
    few = mrpc | {"float_types": "float32"}
    _run(accuracy, **few, output_dir=tmp_path)
    assert len(measured) == 2 + 2 + 4
    for changes, count in (
        ({}, 0),
        ({"mrpc_ptq2": models["mrpc_distilled2"][1]}, 2),
        ({"float_types": "float32,bfloat16"}, 2),
        ({"int8_floatx": "bfloat16"}, 6),
        ({"batch_size": 3}, 8),
        ({"mrpc_max_seq_length": 13}, 8),
        ({"most_examples": 4}, 8),
        ({"most_examples": 9}, 0),
        ({"do_lower_case": False}, 8),
    ):
        measured.clear()
        report = _run(accuracy, **few | changes, output_dir=tmp_path)
        assert len(measured) == count, changes
        if "most_examples" in changes:
            assert report["rows"][0]["cells"][0]["num_examples"] == changes["most_examples"]
    monkeypatch.setattr(accuracy.profiling, "device_names", lambda: ["another"])
    measured.clear()
    _run(accuracy, **few, output_dir=tmp_path)
    assert len(measured) == 8
    data = tmp_path / "data"
    data.mkdir()
    lines = (models["mrpc_data"] / "dev.tsv").read_text().splitlines(keepends=True)
    (data / "dev.tsv").write_text("".join(lines[:-1]))
    measured.clear()
    _run(accuracy, **few | {"mrpc_data": data}, output_dir=tmp_path)
    assert len(measured) == 8


def test_a_part_of_the_questions_is_scored_by_itself(models, tmp_path):
    squad = {key: value for key, value in models.items() if not key.startswith("mrpc")}
    report = _run(accuracy, **squad, most_examples=1, float_types="float32", output_dir=tmp_path)
    scores = {row["metrics"]["exact_match"] for row in report["rows"]}
    assert scores <= {0, 100}
    assert "the first 1 of 2 questions" in (tmp_path / "accuracy_report.md").read_text()


def test_a_cell_that_was_tampered_with_is_refused(models, tmp_path):
    mrpc = {k: v for k, v in models.items() if k in ("mrpc_data", "mrpc_model")}
    few = mrpc | {"mrpc_max_seq_length": 12, "float_types": "float32", "output_dir": tmp_path}
    _run(accuracy, **few)
    path = next((tmp_path / "cells").iterdir())
    content = json.loads(path.read_text())
    for text in (
        "[]",
        "{",
        json.dumps(content | {"result": content["result"] | {"more": 1}}),
        json.dumps(content | {"determined_by": {}}),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=path.name):
            _run(accuracy, **few)
    path.unlink()
    _run(accuracy, **few)
    assert json.loads(path.read_text())["determined_by"] == content["determined_by"]


def test_bad_command_lines_are_told_before_any_work(models, tmp_path, monkeypatch):
    measured = _counted(monkeypatch)
    empty = tmp_path / "empty"
    empty.mkdir()
    without_output = {"output_dir": ""}
    for changes, message in (
        (without_output, "required flags are missing: --output_dir"),
        ({"mrpc_data": "", "squad_data": ""}, "--mrpc_model needs --mrpc_data"),
        ({"squad_data": ""}, "--squad_model needs --squad_data"),
        ({"mrpc_model": ""}, "required flags are missing: --mrpc_model"),
        ({"mrpc_model": empty}, "--mrpc_model=.*bert_config.json not found"),
        ({"mrpc_data": empty}, "dev.tsv not found"),
        ({"squad_data": tmp_path / "none.json"}, "--squad_data=.* not found"),
        ({"squad_data": empty}, "--squad_data=.* is a folder"),
        ({"float_types": "float32,float64"}, "--float_types=float32,float64, expected different"),
        ({"float_types": "float16,float16"}, "--float_types=float16,float16, expected different"),
        ({"mrpc_max_seq_length": 99}, "mrpc: --max_seq_length=99, expected 1 to 40"),
        ({"squad_max_query_length": 30}, "squad: max_seq_length is 24, expected more than"),
        ({"mrpc_float": models["mrpc_ptq2"]}, "is quantized, expected a float one"),
        ({"mrpc_ptq1": models["mrpc_model"] / "model.ckpt"}, "--int8_mode=1 found a float"),
        ({"mrpc_qat2": tmp_path / "none"}, "none not found"),
        ({"mrpc_data": "gs://bucket/mrpc"}, "is a URL"),
    ):
        with pytest.raises((UserError, OSError), match=message):
            _run(accuracy, **{**models, "output_dir": tmp_path / "out", **changes})
    with pytest.raises(UserError, match="nothing to do: give --mrpc_data or --squad_data"):
        _run(accuracy, output_dir=tmp_path / "out")
    assert not measured and not (tmp_path / "out" / "cells").exists()


def test_a_checkpoint_of_another_task_ends_the_report_and_keeps_what_was_measured(models, tmp_path):
    squad = {k: v for k, v in models.items() if not k.startswith("mrpc")}
    squad |= {"float_types": "float32", "squad_qat1": models["mrpc_ptq2"]}
    with pytest.raises(UserError, match="does not fit the model"):
        _run(accuracy, **squad, output_dir=tmp_path)
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_values_that_are_not_finite_are_no_result(models, tmp_path):
    source = reading.Checkpoint(models["mrpc_model"] / "model.ckpt")
    tensors = {name: np.asarray(source.load(name)) for name in source.shapes}
    tensors["output_weights"] = tensors["output_weights"] * np.float32(6e4)
    writing.save_checkpoint(tmp_path / "large", tensors)
    mrpc = {k: v for k, v in models.items() if k in ("mrpc_data", "mrpc_model")}
    with pytest.raises(UserError, match="output_weights has .* that overflow float16"):
        _run(
            accuracy, **mrpc, mrpc_max_seq_length=12, mrpc_float=tmp_path / "large",
            float_types="float16", output_dir=tmp_path / "out",
        )  # fmt: skip
    assert not list((tmp_path / "out").rglob("*.json"))
