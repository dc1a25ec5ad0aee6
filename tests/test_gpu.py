"""Runs the CUDA tests that need no TensorFlow (tests/cuda_test.cc) on a machine with a GPU."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

_REPO = pathlib.Path(__file__).resolve().parent.parent
_BINARY = pathlib.Path(os.environ.get("FT_CUDA_TEST", _REPO / "build" / "cuda" / "cuda_test"))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "part",
    [
        "padding",
        "layer_norm",
        "attention",
        "wgmma",
        "interface",
        "runner",
        "ragged",
        "graphs",
        "nonfinite",
        "gemm_config",
        "layers",
        "split_rows",
        "split_gemm",
        "split_config",
        "split_choices",
        "int8_gemm",
        "int8_norm",
        "int8_attention",
        "int8_layers",
        "fp8_gemm",
        "fp8_layers",
    ],
)
def test_cuda_backend(part: str) -> None:
    """Kernels and whole layers agree with float64 on the CPU."""
    if not _BINARY.exists():
        pytest.skip(f"{_BINARY} is missing: run scripts/build_cuda_standalone.sh")
    done = subprocess.run([_BINARY, part], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-4000:]
