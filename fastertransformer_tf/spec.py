"""What a BERT encoder consists of: the sixteen weights of a layer, its sizes and float types.

The one list of the weights in Python; names, shapes, checks, importers, tests and benchmarks derive
from it. `tf_ops/core/weights.cc` is the one in C++, and `tests/test_spec.py` keeps the two equal.
Free of TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

# An array, a tensor or a variable.
_T = TypeVar("_T")

# Of variables, activations and the op.
FLOAT_TYPES = ("float32", "float16", "bfloat16")
HALF_TYPES = FLOAT_TYPES[1:]
# hidden_act of bert_config.json -> `activation` of the ops. google-research's "gelu" is tanh's.
OP_ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_erf": "gelu_erf", "relu": "relu"}
ACTIVATIONS = tuple(OP_ACTIVATIONS.values())

# What a model of texts takes, int32 [B,S] each.
MODEL_INPUTS = ("input_ids", "input_mask", "segment_ids")

# google-research BERT's, in bert/modeling.py.
GOOGLE_LAYER_NORM_EPS = 1e-12


@dataclasses.dataclass(frozen=True)
class LayerWeight:
    """One of the sixteen weights of a layer.

    Attributes:
      op_input: Its name as an input of the ops, which is FasterTransformer's.
      google: Its variable below `layer_<i>/` in google-research BERT's checkpoints.
      hugging_face: Its tensor below `encoder.layer.<i>.` in transformers' BertModel.
      shape: A letter for each dimension: H hidden size, I inner size. Kernels are [in, out].
      is_quantized: int8 or float8 in the low-precision modes, with a scale for each place along
        `channel_axis`.
    """

    op_input: str
    google: str
    hugging_face: str
    shape: str
    is_quantized: bool

    @property
    def is_kernel(self) -> bool:
        """Whether it is a matrix, which torch keeps as [out, in]: transposed there."""
        return len(self.shape) == 2

    @property
    def channel_axis(self) -> int:
        """The axis of the product's outputs, each of which may have a scale of its own."""
        return len(self.shape) - 1

    def sizes(self, hidden: int, inner: int) -> tuple[int, ...]:
        """Returns its shape with H and I as numbers."""
        return tuple({"H": hidden, "I": inner}[letter] for letter in self.shape)


def _dense(op_input: str, google: str, shape: str) -> tuple[LayerWeight, LayerWeight]:
    """Kernel and bias of a dense layer, which has the same name in both checkpoints."""
    hugging_face = google.replace("/", ".")
    return (
        LayerWeight(
            f"{op_input}_kernel", f"{google}/kernel", f"{hugging_face}.weight", shape, True
        ),
        LayerWeight(f"{op_input}_bias", f"{google}/bias", f"{hugging_face}.bias", shape[1], False),
    )


def _layer_norm(op_input: str, google: str) -> tuple[LayerWeight, LayerWeight]:
    """Beta and gamma of a layer norm, which torch calls bias and weight."""
    hugging_face = google.replace("/", ".")
    return (
        LayerWeight(f"{op_input}_beta", f"{google}/beta", f"{hugging_face}.bias", "H", False),
        LayerWeight(f"{op_input}_gamma", f"{google}/gamma", f"{hugging_face}.weight", "H", False),
    )


# In the order of the ops' inputs.
LAYER_WEIGHTS: tuple[LayerWeight, ...] = (
    *_dense("attr_q", "attention/self/query", "HH"),
    *_dense("attr_k", "attention/self/key", "HH"),
    *_dense("attr_v", "attention/self/value", "HH"),
    *_dense("attr_output", "attention/output/dense", "HH"),
    *_layer_norm("attr_output_layernorm", "attention/output/LayerNorm"),
    *_dense("inter", "intermediate/dense", "HI"),
    *_dense("output", "output/dense", "IH"),
    *_layer_norm("output_layernorm", "output/LayerNorm"),
)


def check_layers(layers: Sequence[Mapping[str, object]]) -> None:
    """Checks that an encoder's weights are there, keyed by `op_input`.

    Raises:
      ValueError: `layers` is empty or a layer's keys are not exactly those of `LAYER_WEIGHTS`.
    """
    if not layers:
        raise ValueError("layers is empty, expected at least one layer's weights")
    expected = [weight.op_input for weight in LAYER_WEIGHTS]
    for index, layer in enumerate(layers):
        missing = [key for key in expected if key not in layer]
        unknown = sorted(set(layer) - set(expected))
        if missing or unknown:
            raise ValueError(
                f"layers[{index}] lacks the weights {missing} and has the unknown {unknown}, "
                f"expected exactly {expected}"
            )


@dataclasses.dataclass(frozen=True)
class EncoderSizes:
    """Sizes of a stack of BERT layers, and what else its weights do not say.

    Attributes:
      layers: L.
      heads: N.
      size: D, of a head.
      inner: I, of the feed-forward layer.
      hidden_act: As in bert_config.json: "gelu" (the tanh form), "gelu_erf" or "relu".
      layer_norm_eps: Epsilon of the layer norms; google's.
    """

    layers: int
    heads: int
    size: int
    inner: int
    hidden_act: str = dataclasses.field(default="gelu", kw_only=True)
    layer_norm_eps: float = dataclasses.field(default=GOOGLE_LAYER_NORM_EPS, kw_only=True)

    @property
    def hidden(self) -> int:
        """H = heads * size."""
        return self.heads * self.size


def random_layers(
    rng: np.random.Generator, num_layers: int, hidden: int, inner: int
) -> list[dict[str, np.ndarray]]:
    """Makes weights that keep activations at the scale that a trained BERT has.

    Query and key kernels are wide enough that the scores have a spread of about 2: with BERT's
    initializer (0.02) attention would be uniform and an error in it would hardly be seen.

    Args:
      rng: Source of randomness.
      num_layers: L.
      hidden: H.
      inner: I.

    Returns:
      For each layer the float32 arrays by `op_input`.
    """
    return [
        {weight.op_input: _random_weight(rng, weight, hidden, inner) for weight in LAYER_WEIGHTS}
        for _ in range(num_layers)
    ]


def _random_weight(
    rng: np.random.Generator, weight: LayerWeight, hidden: int, inner: int
) -> np.ndarray:
    value = rng.standard_normal(weight.sizes(hidden, inner), dtype=np.float32)
    if weight.is_kernel:
        sharp = weight.op_input in ("attr_q_kernel", "attr_k_kernel")
        return value * np.float32((1.4 if sharp else 0.8) / np.sqrt(value.shape[0]))
    return 0.1 * value + (1 if weight.op_input.endswith("gamma") else 0)


def by_google_name(layers: Iterable[Mapping[str, _T]]) -> list[dict[str, _T]]:
    """Renames the weights of layers from the ops' names to those of google's checkpoints."""
    return [{weight.google: layer[weight.op_input] for weight in LAYER_WEIGHTS} for layer in layers]


def by_op_input(layers: Iterable[Mapping[str, _T]]) -> list[dict[str, _T]]:
    """Renames the weights of layers from the names of google's checkpoints to the ops'."""
    return [{weight.op_input: layer[weight.google] for weight in LAYER_WEIGHTS} for layer in layers]


def hugging_face_state(layers: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Names and lays out the weights of layers as transformers' BertEncoder: kernels [out,in].

    Args:
      layers: Arrays by `op_input`.

    Returns:
      Arrays by `layer.<i>.<name>`, the keys of the encoder's state_dict.
    """
    return {
        f"layer.{index}.{weight.hugging_face}": np.ascontiguousarray(layer[weight.op_input].T)
        for index, layer in enumerate(layers)
        for weight in LAYER_WEIGHTS
    }
