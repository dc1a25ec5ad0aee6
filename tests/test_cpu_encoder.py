"""What the CPU's benchmark makes of its measurements, and how it answers wrong flags."""

import pathlib
import subprocess
import sys

import pytest

from benchmarks import cpu_encoder

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _result(engine: str, dtype: str, milliseconds: float) -> dict:
    return {
        "engine": engine, "dtype": dtype, "fill": "full", "weights": "constants", "right": True,
        "median_ms": milliseconds, "p10_ms": milliseconds, "p90_ms": milliseconds,
        "samples_ms": [milliseconds],
    }  # fmt: skip


def _data(threads, shapes: list[dict]) -> dict:
    return {
        "date": "2026-01-01", "commit": "0123456789ab", "versions": {"tensorflow": "2.21.0"},
        "machine": {
            "cpu": "A Xeon", "cpu_family_model_stepping": "6/207/2", "cpus": 16,
            "isa": ["avx512f", "amx_tile"], "memory_gib": 128, "python": "3.12",
        },
        "threads": threads, "dtypes": ["float32", "int8", "int8_bfloat16"], "fills": ["full"],
        "missing": {}, "shapes": shapes,
    }  # fmt: skip


def _shape(results: list[dict], **more) -> dict:
    return {
        "model": "bert-base", "batch": 8, "seq": 128, "other_busy_cpus": 0.0, "gemm_floor": {},
        "results": results, **more,
    }  # fmt: skip


def test_threads_are_compared(tmp_path):
    shapes = [
        _shape([_result("op", "float32", 80.0), _result("openvino", "float32", 90.0)], threads=1),
        _shape([_result("op", "float32", 25.0)], threads=4),
    ]
    data = _data([1, 4], shapes)
    assert cpu_encoder.scaling(data) == {("bert-base 8x128", "op float32"): {1: 80.0, 4: 25.0}}
    text = cpu_encoder.to_markdown(data)
    assert "| bert-base 8x128 | op float32 | 1.00x (1.00) | 3.20x (0.80) |" in text
    assert "## bert-base, 1 thread\n" in text and "## bert-base, 4 threads" in text
    assert "1, 4 threads for every engine" in text and "amx_tile" in text
    assert cpu_encoder.plot_scaling(data, tmp_path / "threads.png")
    assert (tmp_path / "threads.png").stat().st_size > 0
    cpu_encoder.plot(data, tmp_path / "times.png")


def test_files_of_one_number_of_threads_are_read():
    data = _data(2, [_shape([_result("op", "float32", 80.0)])])  # shapes do not tell it
    assert cpu_encoder.scaling(data) == {}
    text = cpu_encoder.to_markdown(data)
    assert "2 threads for every engine" in text and "## Threads" not in text


def test_int8_of_both_types_is_compared_with_the_same_peer():
    shape = _shape([
        _result("openvino", "int8", 40.0),
        _result("op", "int8 mode 2", 30.0),
        _result("op", "int8 mode 2, bfloat16", 20.0),
    ])  # fmt: skip
    assert cpu_encoder.comparisons(shape, "int8 mode 2")["op_over_best_peer"] == 0.75
    assert cpu_encoder.comparisons(shape, "int8 mode 2, bfloat16")["op_over_best_peer"] == 0.5


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--threads=2,0", "--threads is ['2', '0'], expected one number >= 1"),
        ("--threads=many", "--threads is ['many'], expected one number >= 1"),
        ("--dtypes=int4", "--dtypes has ['int4'], expected some of"),
        ("--engines=pytorch", "--engines has ['pytorch'], expected some of"),
    ],
)
def test_wrong_flags_are_named(flag, message):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cpu_encoder", flag],
        cwd=_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
