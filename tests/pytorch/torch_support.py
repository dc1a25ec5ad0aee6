"""What the tests of fastertransformer_torch share; importing it skips a module that cannot run."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
TORCH_OPS = REPOSITORY / "torch_ops"
if str(TORCH_OPS) not in sys.path:
    sys.path.insert(0, str(TORCH_OPS))

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
try:
    import fastertransformer_torch  # noqa: F401
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

DTYPES = ["float32", "float16", "bfloat16"]


def as_tensors(layers, dtype="float32"):
    """The weights of layers as torch tensors of a type; int8 ones stay int8."""
    kind = getattr(torch, dtype)
    return [
        {
            key: torch.tensor(value).to(torch.int8 if value.dtype == "int8" else kind)
            for key, value in layer.items()
        }
        for layer in layers
    ]


def run_python(*arguments, **environment):
    """Runs this interpreter with this checkout's packages and returns what it prints."""
    path = f"{REPOSITORY}:{TORCH_OPS}"
    done = subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
