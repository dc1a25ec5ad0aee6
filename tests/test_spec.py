"""The list of the sixteen weights: the same in Python, in C++ and in the models it tells of."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import REPOSITORY

from fastertransformer_tf import spec

CPP = REPOSITORY / "tf_ops" / "core" / "weights.cc"


def test_equals_the_list_of_cpp() -> None:
    if not CPP.exists():
        pytest.skip(f"the C++ sources are not beside the tests: {CPP}")
    rows = re.findall(r'\{"(\w+)", &LayerWeights::\w+, "(\w+)", (true|false)\}', CPP.read_text())
    assert len(rows) == 16
    assert rows == [(w.op_input, w.shape, str(w.is_quantized).lower()) for w in spec.LAYER_WEIGHTS]


def test_every_name_is_of_one_weight() -> None:
    for attribute in ("op_input", "google", "hugging_face"):
        names = {getattr(weight, attribute) for weight in spec.LAYER_WEIGHTS}
        assert len(names) == 16, attribute


def test_shapes_go_together() -> None:
    shapes = {weight.op_input: weight for weight in spec.LAYER_WEIGHTS}
    for name, weight in shapes.items():
        assert weight.sizes(3, 5) == tuple(3 if letter == "H" else 5 for letter in weight.shape)
        assert weight.is_kernel == name.endswith("kernel") == weight.is_quantized
        if weight.is_kernel:
            bias = shapes[name.replace("kernel", "bias")]
            assert bias.shape == weight.shape[weight.channel_axis]


def test_random_layers_have_all_weights_under_either_name() -> None:
    layers = spec.random_layers(np.random.default_rng(0), 2, 4, 6)
    assert layers[0].keys() == {weight.op_input for weight in spec.LAYER_WEIGHTS}
    for weight in spec.LAYER_WEIGHTS:
        value = layers[1][weight.op_input]
        assert value.shape == weight.sizes(4, 6) and value.dtype == np.float32
        assert not np.array_equal(value, layers[0][weight.op_input])
    renamed = spec.by_google_name(layers)
    assert renamed[0]["output/dense/kernel"] is layers[0]["output_kernel"]
    assert spec.by_op_input(renamed) == layers
