"""All programs: entry points and modules, --help that explains each flag, one-sentence errors."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import zipfile

import pytest
from absl import flags
from conftest import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python has no tomllib.

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PROGRAMS = {name: target.split(":") for name, target in PROJECT["scripts"].items()}
LIBRARY = "fastertransformer_tf/lib/_fastertransformer_tf.so"


@pytest.fixture
def own_flags(monkeypatch: pytest.MonkeyPatch) -> flags.FlagValues:
    """Flags of a process that runs one program only."""
    values = flags.FlagValues()
    flags.DEFINE_integer("verbosity", -1, "As absl.logging defines it.", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    return values


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_explains_every_flag(name, own_flags, monkeypatch, capsys):
    module, function = PROGRAMS[name]
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as exited:
        getattr(importlib.import_module(module), function)()
    assert exited.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join((importlib.import_module(module).__doc__ or "-").split()) in shown
    defined = set(own_flags) - {"verbosity"}
    assert "traceback" in defined
    for flag in defined:
        text = own_flags[flag].help
        assert text and len(text) > 10, f"--{flag} of {name} is not explained"
        assert f"--{flag}:" in shown
        assert " ".join(text.split()) in shown


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_a_module(name, own_flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, PROGRAMS[name][0], raising=False)
    with pytest.raises(SystemExit) as exited:
        runpy.run_module(PROGRAMS[name][0], run_name="__main__")
    assert exited.value.code == 0
    assert "Flags:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("run_classifier_wrap", ["model.ckpt"], "unexpected arguments: model.ckpt; every option"),
        ("run_squad_wrap", [], "required flags are missing: --vocab_file, --bert_config_file"),
        ("profile_bert_inference", ["--use_tensorflow_transformer"], "required flags are missing"),
        ("profile_transformer_inference", ["x"], "unexpected arguments: x"),
        ("ckpt_type_convert", ["--init_checkpoint=a"], "are missing: --fp16_checkpoint"),
        ("ckpt_quantization", ["--init_checkpoint=a"], "are missing: --quantized_checkpoint"),
        ("accuracy_report", ["--output_dir=o"], "nothing to do: give --mrpc_data or --squad_data"),
        ("extract_features", ["--layers=1"], "required flags are missing: --input_file, --output_"),
        ("ft_optimize", ["--source=s"], "required flags are missing: --destination"),
        ("import_hf", ["--output_dir=o"], "required flags are missing: --hf_model"),
        ("import_hf", ["--hf_model=/none", "--output_dir=o"], "/none is not a folder"),
        ("squad_evaluate_v1_1", ["a"], "1 arguments given, expected DATASET PREDICTIONS"),
        ("squad_evaluate_v1_1", [".", "b"], "Is a directory"),
        ("squad_evaluate_v2_0", ["a"], "1 arguments given, expected DATASET PREDICTIONS"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    name, arguments, message, own_flags, monkeypatch, capsys, tmp_path
):
    # What app.run does with the flags and the exit status, without ending the test's process.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    statuses = []

    def run(main, flags_parser):
        statuses.append(main(flags_parser(sys.argv)))

    monkeypatch.setattr("absl.app.run", run)
    module, function = PROGRAMS[name]
    getattr(importlib.import_module(module), function)()
    assert statuses == [1]
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}: ")
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The project's wheel, built offline with this environment's setuptools."""
    if not (REPOSITORY / LIBRARY).is_file():
        pytest.skip(f"{LIBRARY} is not built (scripts/build.sh)")
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index",
         "--no-build-isolation", "-w", folder, REPOSITORY],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode and "setuptools" in built.stderr:
        pytest.skip(f"needs setuptools>=77 (the test extra): {built.stderr.strip()[-300:]}")
    assert built.returncode == 0, built.stderr
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_the_library_and_runs_elsewhere(wheel, tmp_path):
    assert wheel.name.endswith(".whl") and "py3-none-linux_" in wheel.name
    assert LIBRARY in zipfile.ZipFile(wheel).namelist()
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile",
         "--target", site, wheel],
        check=True,
    )  # fmt: skip
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    environment.pop("FT_TF_OPS_LIBRARY", None)

    def start(*command) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=empty, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    names = sorted(path.name for path in (site / "bin").iterdir())
    assert names == sorted(PROGRAMS)
    helps = {name: start(site / "bin" / name, "--help") for name in names}
    for name, process in helps.items():
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "Flags:" in out, name
    answers = [{"answers": [{"text": "the cat"}], "id": "1"}]
    data = {"version": "1.1", "data": [{"paragraphs": [{"qas": answers}]}]}
    (empty / "data.json").write_text(json.dumps(data))
    (empty / "answers.json").write_text('{"1": "cat!"}')
    scored = start(site / "bin" / "squad_evaluate_v1_1", "data.json", "answers.json")
    out, err = scored.communicate()
    assert json.loads(out) == {"exact_match": 100.0, "f1": 100.0}, err
    profiled = start(
        site / "bin" / "profile_transformer_inference", "--output_dir=out",
        "--profiling_output_file=t.tsv", "--max_seq_length=8", "--num_hidden_layers=1",
        "--num_iter=2", "--predict_batch_size=2",
    )  # fmt: skip
    out, err = profiled.communicate()
    assert profiled.returncode == 0, err
    assert "average time (seconds) elapsed fast transformer: " in out
    assert sorted(p.name for p in (empty / "out").iterdir()) == ["t.png", "t.tsv"]
