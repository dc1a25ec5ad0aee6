"""What a model may take while it is evaluated, exported and served, in multiples of its weights."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks import model_memory

MODEL = "small"
# For TensorFlow's sessions, threads and activations, whatever the weights.
FIXED_MIB = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model_memory")
    model_memory.measure("prepare", MODEL, folder)
    model_memory.measure("export", MODEL, folder)
    return folder


# The variables, and what the op prepares of them (all but the embeddings, half of this model).
@pytest.mark.parametrize("task", ["evaluate", "serve", "serve_v1"])
def test_no_copies_beside_the_variables_and_the_prepared_weights(folder, task):
    found = model_memory.measure(task, MODEL, folder)
    weights = model_memory.weights_mib(MODEL)
    taken = found["peak"] - found["modules"]
    assert taken > weights, "nothing was loaded"
    assert taken < 2.6 * weights + FIXED_MIB


def test_half_types_take_half(folder):
    peaks = {
        floatx: model_memory.measure("evaluate", MODEL, folder, floatx)["peak"]
        for floatx in ("float32", "bfloat16")
    }
    assert peaks["float32"] - peaks["bfloat16"] > 0.5 * model_memory.weights_mib(MODEL)
