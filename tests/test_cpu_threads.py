"""What the benchmark of threads makes of its measurements, and how it answers wrong flags."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from benchmarks import cpu_threads_report

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _scaling(**threads) -> dict:
    return {"dtype": "float32", "shape": "8x128", "threads": threads}


_ONE = {"ms": 100.0, "times": 1.0, "arithmetic_times": 1.0}
_SIXTEEN = {"ms": 7.8, "times": 12.8, "arithmetic_times": 14.4}


def test_efficiency_stands_beside_that_of_the_cpus(tmp_path):
    # As JSON holds it, and without the program that tells what the CPUs give.
    data = {
        "date": "2026-01-01", "commit": "0123456789ab", "model": "bert-base",
        "machine": {
            "cpu": "A Xeon", "cpu_family_model_stepping": "6/207/2", "cpus": 16,
            "isa": ["avx512f", "amx_tile"], "memory_gib": 128, "python": "3.12",
        },
        "rounds": 8, "burst_s": 0.6, "rows": [], "missing": [],
        "scaling": [
            _scaling(**{"1": _ONE, "16": _SIXTEEN}),
            _scaling(**{"1": {"ms": 100.0, "times": 1.0}, "4": {"ms": 33.3, "times": 3.0}}),
        ],
    }  # fmt: skip
    text = cpu_threads_report.to_markdown(data)
    assert "| float32 | 8x128 | 16 | 7.8 | 12.8 | 0.8 | 0.9 |" in text
    assert "| float32 | 8x128 | 4 | 33.3 | 3.0 | 0.75 |  |" in text
    assert "Threads that share" not in text
    assert cpu_threads_report.plot(data, tmp_path / "threads.json") == ["threads_scaling.png"]
    assert (tmp_path / "threads_scaling.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--scaling=2,4"],
            "--scaling is ['2', '4'], expected numbers of threads with 1 among them",
        ),
        (["--scaling=1,two"], "--scaling is ['1', 'two'], expected"),
        (
            ["--measures=speed"],
            "--measures is ['speed'], expected of scaling, quota, sessions, pauses",
        ),
        (["--arithmetic=/no/program"], "--arithmetic is /no/program, expected a program"),
        (["--scaling=1,9999", f"--arithmetic={sys.executable}"], "a CPU for each thread"),
    ],
)
def test_wrong_flags_are_named(flags, expected):
    command = [sys.executable, "-m", "benchmarks.cpu_threads", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, timeout=120)
    assert done.returncode == 1
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory) -> pathlib.Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build cpu_arithmetic with")
    program = tmp_path_factory.mktemp("arithmetic") / "cpu_arithmetic"
    source = _ROOT / "benchmarks/cpu_arithmetic.cc"
    subprocess.run(
        [compiler, "-O2", "-std=c++17", "-pthread", str(source), "-o", str(program)], check=True
    )
    return program


def test_arithmetic_of_threads_adds_up(arithmetic):
    done = subprocess.run([arithmetic, "1", "0.05"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    # Any processor does 100 million a second.
    assert found["gflops"] == found["slowest"] == found["fastest"] > 0.1


def test_arithmetic_wants_a_cpu_for_each_thread(arithmetic):
    done = subprocess.run([arithmetic, "100000", "0.05"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr and "this process has" in done.stderr
