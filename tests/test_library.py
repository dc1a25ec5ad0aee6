"""The built library: it needs no CUDA library and binds none of TensorFlow's CUDA stubs."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DEFAULT = REPOSITORY / "fastertransformer_tf" / "lib" / "_fastertransformer_tf.so"

CUDA_LIBRARY = re.compile(r"^lib(cu|nv)")
# Functions of the runtime (cudaMalloc, __cudaRegisterFunction), the driver, cuBLAS and cuDNN:
# libtensorflow_framework exports stubs of them, which would be taken silently.
CUDA_SYMBOL = re.compile(r"^(_*cuda[A-Z]|cu[A-Z]|cublas|cudnn|nvrtc|nvJitLink)")


def needed(dynamic_section: str) -> list[str]:
    """Returns the NEEDED libraries of `readelf -d`."""
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic_section)


def undefined(symbols: str) -> list[str]:
    """Returns the names of `nm -D --undefined-only`, without versions."""
    return [line.split()[-1].split("@")[0] for line in symbols.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def library() -> pathlib.Path:
    path = pathlib.Path(os.environ.get("FT_TF_OPS_LIBRARY", DEFAULT))
    if not path.is_file():
        pytest.skip(f"no library at {path}: run scripts/build.sh")
    for tool in ("readelf", "nm"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed (binutils)")
    return path


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_needs_no_cuda_library(library: pathlib.Path) -> None:
    names = needed(_run("readelf", "-W", "-d", str(library)))
    assert "libtensorflow_framework.so.2" in names  # the parser sees something
    assert not [name for name in names if CUDA_LIBRARY.match(name)]


def test_needs_only_tensorflow_and_the_system(library: pathlib.Path) -> None:
    names = needed(_run("readelf", "-W", "-d", str(library)))
    system = re.compile(
        r"^(lib(tensorflow_framework|c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d+|ld-linux.*)$"
    )
    assert not [name for name in names if not system.match(name)]


def test_binds_no_cuda_symbol(library: pathlib.Path) -> None:
    names = undefined(_run("nm", "-D", "--undefined-only", str(library)))
    assert len(names) > 10  # it does import from TensorFlow
    assert not [name for name in names if CUDA_SYMBOL.match(name)]


def test_exports_none_of_our_internals(library: pathlib.Path) -> None:
    lines = _run("nm", "-D", "-C", "--defined-only", str(library)).splitlines()
    assert not [line for line in lines if re.search(r"\bft::(cpu|cuda)::", line)]


def test_the_checks_see_what_they_look_for() -> None:
    dynamic = " 0x01 (NEEDED)   Shared library: [libcudart.so.13]\n 0x0e (SONAME) [x]\n"
    assert [name for name in needed(dynamic) if CUDA_LIBRARY.match(name)] == ["libcudart.so.13"]
    symbols = "   U cudaMalloc@V1\n   U __cudaRegisterFatBinary\n   U cublasLtCreate\n   U custom\n"
    names = undefined(symbols)
    assert [n for n in names if CUDA_SYMBOL.match(n)] == names[:3]
