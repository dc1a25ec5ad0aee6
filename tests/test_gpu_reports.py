"""What the GPU benchmarks make of their measurements, without a GPU."""

import argparse
import json
import os
import pathlib
import sys
import threading

import numpy as np
import pytest

from benchmarks import gpu_encoder, gpu_profile, gpu_workers
from benchmarks.ragged import is_real, ragged_lengths

_HEADER = '"ID","Kernel Name","gpu__time_duration.sum"'
_LAYER = [
    ("nvjet_hsh_128x256_64x4_bias_TNT", 70000),
    ("void ft::cuda::AttentionWgmmaKernel<64, 128>(ft::Args)", 40000),
    ("void cutlass::Kernel2<cutlass_80_tensorop>(Params)", 25000),
    ("void cublasLt::splitKreduce_kernel<32, 16>(Params)", 5000),
    ("void ft::cuda::LayerNormKernel<__half>(Args)", 14000),
    ("sm90_xmma_gemm_f16f16_f16f32", 93000),
    ("void ft::cuda::SmallGemmKernel<2>(Args)", 86000),
    ("void ft::cuda::LayerNormKernel<__half>(Args)", 15000),
]


def _profile(layers):
    lines = ["==PROF== Connected", _HEADER, '"","","ns"']
    kernels = [("void ft::cuda::TransposeKernel(Args)", 1000), *_LAYER * layers]
    lines += [f'"{i}","{name}","{time:,}"' for i, (name, time) in enumerate(kernels)]
    return gpu_profile.read_csv(lines)


def test_kernels_are_sorted_into_parts():
    result = gpu_profile.table("32x384", _profile(3), 5.0)
    times = {row["part"]: row["us"] for row in result["rows"]}
    assert times == {
        "QKV GEMM": 70, "attention": 40, "attention output GEMM": 30, "layer norm 1": 14,
        "intermediate GEMM": 93, "output GEMM": 86, "layer norm 2": 15,
    }  # fmt: skip
    assert result["layers"] == 3 and result["sum_us"] == 348
    floors = {row["part"]: row["floor_us"] for row in result["rows"]}
    # 12288 x 2304 x 768 at 798 TFLOP/s; 2 x 12288 x 768 numbers of 2 bytes at 3 TB/s.
    assert floors["QKV GEMM"] == pytest.approx(54.49, abs=0.01)
    assert floors["layer norm 1"] == pytest.approx(12.58, abs=0.01)
    assert "| attention output GEMM | 30.0 |" in gpu_profile.markdown(
        {"gpu": "g", "date": "2026-11-25", "commit": "c", "computes_in": "FP16", "shapes": [result]}
    )


def test_floors_of_integers():
    floors = gpu_profile.floors(32, 384, int8_mode="2")
    # 12288 x 3072 x 768 at 1458 TOPS; three times 12288 x 768 bytes at 3 TB/s.
    assert floors["intermediate GEMM"].arithmetic == pytest.approx(39.77, abs=0.01)
    assert floors["layer norm 1"].arithmetic == 0
    assert floors["layer norm 1"].memory == pytest.approx(9.44, abs=0.01)


def test_parts_of_one_kernel():
    # As few tokens have them, then as FP8 has them from 2048 rows on.
    few = [
        ("FewRowsGemmKernel", 3000), ("AttentionProjectionKernel", 5000), ("LayerNormKernel", 2000),
        ("FewRowsGemmKernel", 3000), ("FewRowsGemmKernel", 4000), ("LayerNormKernel", 2000),
    ]  # fmt: skip
    kernels = [gpu_profile.Kernel(name, ns / 1e3) for name, ns in few * 2]
    result = gpu_profile.table("1x32", kernels, None)
    assert [(row["part"], row["us"]) for row in result["rows"]] == [
        ("QKV GEMM", 3), ("attention and attention output GEMM", 5), ("layer norm 1", 2),
        ("intermediate GEMM", 3), ("output GEMM", 4), ("layer norm 2", 2),
    ]  # fmt: skip
    fused = [
        "QuantizeKernel",
        "cutlass",
        "AttentionWgmmaKernel",
        "NormGemmKernel",
        "cutlass",
        "NormGemmKernel",
    ]
    kernels = [gpu_profile.Kernel(name, 10.0) for name in fused]
    result = gpu_profile.table("32x384 half", kernels, None, "fp8")
    assert [row["part"] for row in result["rows"]] == [
        "QKV GEMM", "attention", "attention output GEMM and layer norm 1", "intermediate GEMM",
        "output GEMM and layer norm 2",
    ]  # fmt: skip
    # 6144 rows of 768: the bytes of x and w, residual of 2, numbers of 2 and rounded ones of 1.
    size, weights = 6144 * 768, 768 * 768
    floor = 1e6 * (size + weights + (2 + 2 + 1) * size) / 3.0e12
    assert result["rows"][2]["floor_us"] == pytest.approx(floor, abs=0.01)
    assert result["rows"][2]["bound"] == "memory"
    with pytest.raises(ValueError, match="expected as '32x384' or '32x384 half'"):
        gpu_profile.table("32x384 packed", kernels, None)


def test_what_is_no_encoder_is_refused():
    with pytest.raises(ValueError, match="not whole layers"):
        gpu_profile.parts_of_layers(_profile(2)[:-3])
    with pytest.raises(ValueError, match="no column"):
        gpu_profile.read_csv(["==ERROR== No kernels were profiled."])


def _data(ours, theirs):
    return {
        "ms": {
            "op_tuned": {"1x32": {"fp16": {"masked": ours}}},
            "torch": {"1x32": {"fp16": {"masked": theirs}}},
        }
    }


@pytest.mark.parametrize("ours,verdict", [(0.5, "yes"), (0.51, "0 of 1")])
def test_criteria(ours, verdict):
    rows = {row[0]: row for row in gpu_encoder.criteria_rows(_data(ours, 0.5), ["1x32"])}
    assert rows["op masked / torch masked"][2:] == [f"{ours / 0.5:.2f}", verdict]
    # What was not measured is not met.
    assert rows["op packed / torch packed"][-1] == "0 of 1"


@pytest.mark.parametrize(("scale", "variant", "right"), [
    (1.0, "full", True), (1.005, "masked", True), (1.02, "packed", False), (np.nan, "full", False),
])  # fmt: skip
def test_a_wrong_output_is_not_timed(tmp_path, capsys, scale, variant, right):
    arguments = ["--shapes=2x8", f"--workdir={tmp_path}"]
    worker = gpu_workers.Worker(gpu_workers.make_parser().parse_args(["torch", *arguments]))
    truth = np.random.default_rng(1).standard_normal((2, 8, 16), dtype=np.float32)
    np.save(worker.truth_path((2, 8), "full"), truth)
    np.save(worker.truth_path((2, 8), "masked"), truth[:, :4])
    timed = []

    def run() -> float:
        worker.check((2, 8), "fp16", variant, scale * truth)
        timed.append(variant)
        return 1.5

    worker.measure((2, 8), "fp16", variant, run)
    checked, result = capsys.readouterr().out.splitlines()
    assert checked.startswith("CHECKED ") and result.startswith("RESULT ")
    fields = json.loads(result.removeprefix("RESULT "))
    if right:
        assert fields["ms"] == 1.5 and timed
    else:
        assert "expected at most 0.01: not timed" in fields["error"] and not timed


@pytest.mark.parametrize(("code", "limit", "problem"), [
    ('print("DONE", flush=True); time.sleep(60)', 2, None),
    ('print("RESULT {}", flush=True); time.sleep(60)', 2, "was out of time after 1 results"),
    ('sys.exit("no GPU")', 60, "ended early, exit code 1: no GPU"),
])  # fmt: skip
def test_why_results_are_missing(tmp_path, code, limit, problem):
    command = [sys.executable, "-c", f"import sys, time; print('READY 1', flush=True); {code}"]
    process = gpu_encoder.Process("op", command, dict(os.environ), tmp_path / "log")
    assert process.ready.wait(60)
    process.turn(limit)
    assert process.problem() == (problem and f"op {problem}")


@pytest.mark.parametrize("wrong_batch", [None, 0, gpu_workers.RAGGED_BATCHES - 1])
def test_every_ragged_batch_is_checked(tmp_path, capsys, wrong_batch):
    arguments = ["op", "--shapes=3x8", f"--workdir={tmp_path}"]
    worker = gpu_workers.Worker(gpu_workers.make_parser().parse_args(arguments))
    lengths = ragged_lengths(3, 8, gpu_workers.RAGGED_BATCHES)[:, :2]
    real = is_real(lengths, 8)[..., None]
    output = np.random.default_rng(1).standard_normal((*lengths.shape, 8, 16), dtype=np.float32)
    np.save(worker.truth_path((3, 8), "removed_changing"), np.where(real, output, 0))
    output[~real[..., 0]] = np.nan  # What is in padding does not count.
    if wrong_batch is not None:
        output[wrong_batch] = -output[wrong_batch]
        with pytest.raises(ValueError, match="not timed"):
            worker.check((3, 8), "fp16", "kept_changing", output)
    else:
        worker.check((3, 8), "fp16", "kept_changing", output)


def test_rows_say_what_was_measured():
    data = _data(0.5, 0.6) | {"gpu": {"name": "G"}, "measured": {"op_tuned": {"commit": "abc, x"}}}
    data["ms"]["op_tuned"]["1x32"]["fp16"]["constants"] = 0.5
    rows = gpu_encoder.variant_rows(data)
    assert rows[0][:5] == ["op", "fp16", "second half masked", "variables", "tuned"]
    assert rows[1][3] == "constants" and rows[2][3:5] == ["arguments", "not tuned"]
    assert rows[0][5:] == ["own process", "abc", "G"]


def test_a_turn_is_timed_without_its_call(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(gpu_workers.time, "perf_counter", lambda: clock[0])
    calls = iter([0.002, 0.002, 0.9, 0.002] * 5)  # what a call costs; one is disturbed

    def run(turns):
        clock[0] += next(calls) + 0.0005 * turns

    assert gpu_workers._slope_ms(run, 40) == pytest.approx(0.5)


class _IdleProcess:
    """A worker that has nothing to do; notes which tuned files are there at its turn."""

    checks, results, versions = (), (), {}

    def __init__(self, name: str, config: str) -> None:
        self.name, self.config, self.found = name, config, None
        self.ready = threading.Event()
        self.ready.set()

    def turn(self, limit: float) -> None:
        folder = pathlib.Path(self.config)
        self.found = {path.name: path.read_text() for path in folder.glob("*")}

    def problem(self) -> None:
        return None


def _gpu_run(tmp_path, monkeypatch, only):
    """A run whose workers do nothing, with C++ programs that tune and time at once."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    programs = {
        "encoder_gemm": "for name in gemm half_gemm igemm; do"
        " echo tuned $name > $FT_GEMM_CONFIG_DIR/${name}_config.in; done",
        "encoder_sample": 'echo "FT-CPP-time 1.5 ms"',
    }
    for name, text in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setattr(gpu_encoder.report, "gpu_state", lambda: {"name": "G"})
    arguments = argparse.Namespace(
        tools=tools, out=tmp_path / "result", shapes=["1x32"], only=only, layers=12, device="gpu",
        budget=60.0, compile_limit=10.0, fresh=False,
    )  # fmt: skip
    workdir = tmp_path / f"work_{'_'.join(only)}"
    workdir.mkdir()
    run = gpu_encoder.Run(arguments, workdir)
    started = []

    def start(name, kind, shapes, extra, **environment):
        started.append(_IdleProcess(name, environment.get("FT_GEMM_CONFIG_DIR", workdir)))
        return started[-1]

    monkeypatch.setattr(run, "start", start)
    run.run_workers()
    run.save()
    return run, {process.name: process.found for process in started}


def test_a_later_run_of_the_op_alone_has_all_that_was_tuned(tmp_path, monkeypatch):
    tuned = {f"{name}_config.in": f"tuned {name}\n" for name in ("gemm", "half_gemm", "igemm")}
    first, found = _gpu_run(tmp_path, monkeypatch, ["cpp"])
    assert first.data["gemm_configs"] == tuned and "op_tuned" not in found
    assert first.data["ms"]["cpp_tuned"]["1x32"]["fp16"]["packed"] == 1.5
    second, found = _gpu_run(tmp_path, monkeypatch, ["op_tuned"])
    assert found["op_tuned"] == tuned and "op" not in found
    assert not second.data["problems"]


def test_the_op_that_is_not_tuned_needs_no_tuning(tmp_path, monkeypatch):
    run, found = _gpu_run(tmp_path, monkeypatch, ["op"])
    assert found["op"] == {} and "op_tuned" not in found
    assert not run.data["gemm_configs"] and "cpp" not in run.data["ms"]
