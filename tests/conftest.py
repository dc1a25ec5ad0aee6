"""Fixtures and markers shared by all tests."""

from __future__ import annotations

import collections
import functools
import importlib.util
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Where the acceptance data lies in a development checkout; FT_TEST_DATA overrides it.
SHARED_DATA = pathlib.Path(os.environ.get("FT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

# How a test's reason begins that was skipped because of it.
_MISSING_DATA = "acceptance data not found"

# Where GPU tests place the ops. "/CPU:0" rehearses them on a machine without a GPU.
GPU_TEST_DEVICE = os.environ.get("FT_TEST_DEVICE", "/GPU:0")

# Several processes test on one GPU: without it the first takes nearly all memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

# Tests run from a checkout, without the package being installed.
for entry in (str(REPOSITORY), str(REPOSITORY / "tests")):
    if entry not in sys.path:
        sys.path.insert(0, entry)


@functools.cache
def _gpu_problem(framework: str) -> str | None:
    """Says why GPU tests of "tensorflow" or "torch" cannot run here, or None."""
    if "GPU" not in GPU_TEST_DEVICE:
        return None
    if framework == "torch":
        import torch

        return None if torch.cuda.is_available() else "PyTorch sees no GPU on this machine"
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return "TensorFlow sees no GPU on this machine"
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of the fuzzers: a short run by default, a long one where asked for."""
    parser.addoption("--fuzz-cases", type=int, default=200, help="mutated files of each kind")
    parser.addoption("--fuzz-seed", type=int, default=1, help="seed of the mutations")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers, so that they exist also where pyproject.toml is not beside tests/."""
    config.addinivalue_line("markers", "gpu: needs a GPU that the framework can use")
    if importlib.util.find_spec("tensorflow") is None:  # The tests in pytorch/ need none.
        return
    import tensorflow as tf

    # TensorFlow allows TF32 unless told otherwise; the float32 bounds are those of IEEE float32.
    # Before the test modules are imported, since some of them call an op then.
    tf.config.experimental.enable_tensor_float_32_execution(False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked `gpu` where there is no GPU, giving the reason."""
    if item.get_closest_marker("gpu"):
        problem = _gpu_problem("torch" if item.path.parent.name == "pytorch" else "tensorflow")
        if problem:
            pytest.skip(problem)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says above pytest's last line what was missing, and how many tests that left out."""
    reasons = (report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    missing = collections.Counter(reason for reason in reasons if _MISSING_DATA in reason)
    if missing:
        terminalreporter.section("acceptance data that was missing")
    for reason, count in missing.items():
        what = reason.partition(_MISSING_DATA)[2].strip(": ")
        terminalreporter.line(f"{count} tests skipped without {what}")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of the acceptance data (see its README.md); skips where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{_MISSING_DATA}: {SHARED_DATA} (set FT_TEST_DATA)")
    return SHARED_DATA


def shared_path(shared_data: pathlib.Path, *parts: str) -> pathlib.Path:
    """Returns a path below the acceptance data, skipping the test where it is missing."""
    path = shared_data.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{_MISSING_DATA}: {path}")
    return path


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator with a fresh seed, printed (shown on failure); FT_TEST_SEED fixes it."""
    seed = int(os.environ.get("FT_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
    print(f"seed of {request.node.name}: FT_TEST_SEED={seed}")
    return np.random.default_rng(seed)
