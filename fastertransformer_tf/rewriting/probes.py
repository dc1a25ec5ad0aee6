"""Runs parts of a graph on random numbers and compares them with what they should compute.

What is found by structure is believed only when it computes the same: the layer norms with the
epsilon that is found, the activation value by value, and each layer as a whole against the op, with
random weights in the place of the model's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from fastertransformer_tf import ops, spec
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.rewriting import layers, structure, views
from fastertransformer_tf.rewriting.layers import Attention, Layer, Mismatch

# A layer's output against the op's: both are float32, and leave a layer norm.
_LAYER_TOLERANCE = 1e-4
# The tanh and the erf form of GELU differ by up to 5e-4.
_ACTIVATION_TOLERANCE = 1e-5
_NORM_TOLERANCE = 2e-4
# How many ops a layer norm or an activation may consist of.
_MOST_OPS = 40
# How many values an activation is compared in.
_MOST_VALUES = 4096
# What is added to a score that is masked in the probes: google's.
_MASKED = -10000.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes that a probe runs with.

    Attributes:
      batch: B.
      length: S.
      hidden: H.
    """

    batch: int
    length: int
    hidden: int

    def shape_of(self, tensor: tf.Tensor) -> list[int]:
        """Returns the shape that a tensor of the graph has with these sizes.

        Unknown dimensions are B and S in this order; of a matrix of H columns the rows are B*S.

        Raises:
          Mismatch: The graph does not tell its rank, or has a dimension with another meaning.
        """
        shape = tensor.shape
        if shape.rank is None:
            raise Mismatch(f"{tensor.name} has a shape of unknown rank, expected a known one")
        dims = list(shape)
        if shape.rank == 2 and dims[1] == self.hidden and dims[0] in (None, self.rows):
            return [self.rows, self.hidden]
        known = {1: [self.batch], 2: [self.batch, self.length]}
        defaults = known.get(shape.rank, [self.batch, *[self.length] * (shape.rank - 1)])
        if shape.rank == 4:
            defaults[1] = 1
        return [
            default if dim is None else dim for dim, default in zip(dims, defaults, strict=True)
        ]

    @property
    def rows(self) -> int:
        """B * S."""
        return self.batch * self.length


class Prober:
    """Runs the probes of one body, inside `View.session`."""

    def __init__(self, view: views.View, seed: int = 1) -> None:
        """Takes the graph, and the seed of the random numbers."""
        self._view = view
        self._rng = np.random.default_rng(seed)

    # ---- Sizes -----------------------------------------------------------------------------------

    def sizes(self, attention: Attention) -> list[Sizes]:
        """Chooses the sizes to run with: small ones, but where the graph fixes them."""
        hidden = attention.states.shape[-1]
        if hidden is None:
            raise Mismatch(f"the size of {attention.states.name}'s last axis is unknown")
        scores = attention.softmax.outputs[0].shape
        batch = scores[0] if scores.rank == 4 else None
        length = scores[3] if scores.rank == 4 else None
        states = attention.states.shape
        if states.rank == 3:
            batch, length = batch or states[0], length or states[1]
        if batch is None and length is not None and states.rank == 2 and states[0]:
            batch = states[0] // length
        chosen = [Sizes(batch or b, length or s, hidden) for b, s in ((2, 5), (3, 8))]
        return list(dict.fromkeys(chosen))

    def _shape_feeds(self, shapes: Iterable[tf.Tensor], sizes: Sizes) -> dict[str, np.ndarray]:
        """Makes values for tensors of which only the shape is looked at."""
        return {
            t.name: np.zeros(sizes.shape_of(t), t.dtype.base_dtype.as_numpy_dtype) for t in shapes
        }

    def _normal(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape, dtype=np.float32)

    # ---- Layer norm ------------------------------------------------------------------------------

    def layer_norm(
        self, total: tf.Tensor, sizes: Sizes, what: str
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, float]:
        """Finds the layer norm behind a sum, and its epsilon.

        Returns:
          Its output, gamma, beta and epsilon.

        Raises:
          Mismatch: There is none.
        """
        reason = f"no layer norm over the last axis with gamma and beta follows {what}"
        tried = 0
        for output in self._view.behind(total, _MOST_OPS):
            if output.dtype != total.dtype:
                continue
            try:
                weights, shapes = self._view.leaves(output, [total])
            except views.Depends:
                continue
            vectors = [w for w in weights.values() if w.shape.num_elements() == sizes.hidden]
            if len(vectors) < len(weights) or len(vectors) != 2:
                continue
            tried += 1
            feeds = self._shape_feeds(shapes.values(), sizes)
            for gamma, beta in (vectors, vectors[::-1]):
                epsilon = self._epsilon(output, total, gamma, beta, feeds, sizes)
                if epsilon is not None:
                    return output, gamma, beta, epsilon
            if tried == 4:
                break
        raise Mismatch(reason)

    def _epsilon(
        self,
        output: tf.Tensor,
        total: tf.Tensor,
        gamma: tf.Tensor,
        beta: tf.Tensor,
        feeds: dict[str, np.ndarray],
        sizes: Sizes,
    ) -> float | None:
        """Finds the epsilon with which a part of the graph is a layer norm; None: with none.

        Run on values of ordinary size and on small ones, whose variance epsilon is not small
        against.
        """
        values = {gamma.name: 1 + self._normal(sizes.hidden), beta.name: self._normal(sizes.hidden)}
        shaped = {t.name: values[t.name].reshape(self._known_shape(t)) for t in (gamma, beta)}
        candidates = self._small_constants(output, total)
        shape = sizes.shape_of(total)
        for scale in (1.0, *(math.sqrt(c) for c in candidates)):
            x = np.float32(scale) * self._normal(*shape)
            try:
                actual = self._view.run(output, {**feeds, **shaped, total.name: x})
            except (tf.errors.OpError, ValueError):
                return None
            if actual.size != x.size:
                return None
            wide = x.astype(np.float64)
            centred = wide - wide.mean(-1, keepdims=True)
            variance = np.square(centred).mean(-1, keepdims=True)

            def fits(epsilon: float, a: Any = actual, c: Any = centred, v: Any = variance) -> bool:
                expected = c / np.sqrt(v + epsilon) * values[gamma.name] + values[beta.name]
                difference = np.abs(a.reshape(expected.shape) - expected)
                return bool((difference <= _NORM_TOLERANCE * (1 + np.abs(expected))).all())

            candidates = [c for c in candidates if fits(c)]
        return candidates[0] if candidates else None

    def _small_constants(self, output: tf.Tensor, total: tf.Tensor) -> list[float]:
        """Lists the numbers between a sum and a layer norm's output that may be its epsilon."""
        found: dict[float, None] = {}
        seen, todo = {total.name}, [output]
        while todo:
            tensor = todo.pop()
            if tensor.name in seen:
                continue
            seen.add(tensor.name)
            op = tensor.op
            if op.type.startswith("FusedBatchNorm"):
                found[float(op.get_attr("epsilon"))] = None
            value = self._view.scalar(tensor)
            if value is not None and 0 < value < 1e-2:
                found[value] = None
            todo += [t for t in op.inputs if not self._view.is_read(op)]
        return list(found)

    @staticmethod
    def _known_shape(tensor: tf.Tensor) -> list[int]:
        """Returns the shape of a weight.

        Raises:
          Mismatch: It is not fully known.
        """
        if not tensor.shape.is_fully_defined():
            raise Mismatch(
                f"the weight {tensor.name} has shape {tensor.shape}, expected a known one"
            )
        return list(tensor.shape)

    # ---- Activation ------------------------------------------------------------------------------

    def activation(self, before: tf.Tensor, after: tf.Tensor, inner: int, sizes: Sizes) -> str:
        """Finds which activation a part of the graph computes.

        Args:
          before: [.., I], what it is computed from.
          after: Its result.
          inner: I.
          sizes: To run with.

        Returns:
          As the op names it.

        Raises:
          Mismatch: None that the op has; the reason names it where it is a known one.
        """
        try:
            weights, shapes = self._view.leaves(after, [before])
        except views.Depends as error:
            raise Mismatch(f"the activation is not a function of its input: {error}") from error
        if weights:
            raise Mismatch(f"the activation depends on the weight {next(iter(weights))}")
        shape = sizes.shape_of(before)
        shape[-1] = inner
        if len(shape) == 2:
            shape[0] = sizes.rows
        x = self._rng.uniform(-6, 6, shape).astype(np.float32)
        feeds = {**self._shape_feeds(shapes.values(), sizes), before.name: x}
        actual = self._view.run(after, feeds)
        if actual.size != x.size:
            raise Mismatch(f"the activation makes {list(actual.shape)} of {list(x.shape)}")
        # The whole layer is compared with the op afterwards: here some values are enough.
        given, got = (t.ravel()[:_MOST_VALUES].astype(np.float64) for t in (x, actual))
        for name, function in _ACTIVATIONS.items():
            if np.allclose(got, function(given), rtol=0, atol=_ACTIVATION_TOLERANCE):
                if name in spec.ACTIVATIONS:
                    return name
                raise Mismatch(
                    f"activation is {name}, expected one of {', '.join(spec.ACTIVATIONS)}"
                )
        raise Mismatch(f"activation is none of {', '.join(spec.ACTIVATIONS)}")

    # ---- The whole layer -------------------------------------------------------------------------

    def check_layer(self, layer: Layer, sizes: Iterable[Sizes]) -> None:
        """Compares a layer of the graph with the op, both with the same random weights.

        Raises:
          Mismatch: They differ, or the layer depends on something else than its parts.
        """
        cuts = [layer.states, *layer.weights.values(), *layer.adders]
        try:
            weights, shapes = self._view.leaves(layer.output, cuts, layer.states)
        except views.Depends as error:
            raise Mismatch(f"the layer depends on more than its input and mask: {error}") from error
        if weights:
            raise Mismatch(f"the layer depends on one more weight: {next(iter(weights))}")
        random = spec.random_layers(self._rng, 1, layer.hidden, layer.inner)[0]
        feeds: dict[str, np.ndarray] = {}
        for name, tensor in layer.weights.items():
            if tensor.name in feeds:  # One weight in two places.
                random[name] = feeds[tensor.name].reshape(random[name].shape)
            feeds[tensor.name] = random[name].reshape(self._known_shape(tensor))
        for size in sizes:
            given = feeds | self._shape_feeds(shapes.values(), size)
            x = self._normal(size.batch, size.length, size.hidden)
            given[layer.states.name] = x.reshape(size.shape_of(layer.states))
            adder = np.zeros([size.batch, 1, size.length, size.length], np.float32)
            for tensor in layer.adders:
                value = self._random_adder(tensor, size)
                given[tensor.name] = value
                adder = adder + layers.as_added(value)
            self._compare(layer, x, adder, random, given)

    def _random_adder(self, tensor: tf.Tensor, sizes: Sizes) -> np.ndarray:
        """Makes a random mask, as it is added to the scores, in the shape that the graph has."""
        shape = sizes.shape_of(tensor)
        full = [1] * (4 - len(shape)) + shape
        if tensor.shape.rank == 4 and tensor.shape[1] != 1 or full[1] != 1:
            raise Mismatch(
                f"{tensor.name}, which is added to the scores, has shape {tensor.shape}, expected "
                "one for all heads, [B,1,S,S]"
            )
        if tensor.dtype not in (tf.float32, tf.bool):
            raise Mismatch(f"{tensor.name} is {tensor.dtype.name}, expected float32 or bool")
        masked = self._rng.random(shape) < 0.4
        if shape:
            masked[..., 0] = False  # A row that is masked altogether is mostly rounding errors.
        if tensor.dtype == tf.bool:
            return ~masked
        return np.where(masked, np.float32(_MASKED), np.float32(0))

    def _compare(
        self,
        layer: Layer,
        x: np.ndarray,
        adder: np.ndarray,
        weights: dict[str, np.ndarray],
        feeds: dict[str, np.ndarray],
    ) -> None:
        batch, length, _ = x.shape
        mask = (adder > _MASKED / 2).astype(np.float32)
        full_mask = np.broadcast_to(mask, [batch, 1, length, length])
        expected = _op_output(layer, x, full_mask, weights)
        try:
            actual = self._view.run(layer.output, feeds)
        except (tf.errors.OpError, ValueError) as error:
            text = views.reason_of(error)
            raise Mismatch(f"the layer does not run by itself: {text}") from error
        if actual.size != x.size:
            raise Mismatch(f"the layer's output has shape {list(actual.shape)}")
        difference = np.abs(actual.reshape(x.shape) - expected).max(initial=0)
        if not difference <= _LAYER_TOLERANCE:
            raise Mismatch(
                f"with random weights its output differs by up to {difference:.3g} from a BERT "
                f"layer's with {layer.heads} heads and scores scaled by 1/sqrt({layer.size}), "
                f"expected {_LAYER_TOLERANCE:g} or less"
            )


def _op_output(
    layer: Layer, x: np.ndarray, mask: np.ndarray, weights: dict[str, np.ndarray]
) -> np.ndarray:
    """What the op computes with the sizes of a layer: x [B,S,H], mask [B,1,S,S] -> [B,S,H]."""
    with tf.Graph().as_default(), tf.device("/cpu:0"):
        (output,) = ops.bert_encoder(
            tf.constant(x),
            None,
            tf.constant(mask),
            [weights],
            head_num=layer.heads,
            size_per_head=layer.size,
            activation=layer.activation,
            layernorm_epsilon=layer.epsilon,
            cache_weights=False,
        )
        with tf.compat.v1.Session(config=sessions.session_config()) as session:
            return session.run(output)


def find_layer(
    prober: Prober, view: views.View, softmax: Any, label: str, assume_real_tokens: bool = False
) -> Layer:
    """Finds the layer around a softmax and proves that the op computes it.

    Args:
      prober: Of the graph.
      view: The graph.
      softmax: The op.
      label: What reports call the layer.
      assume_real_tokens: Every query sees a key: what the graph does with others does not matter.

    Raises:
      Mismatch: It is none, with the reason.
    """
    attention = structure.find_attention(view, softmax)
    if attention.states.dtype != tf.float32:
        raise Mismatch(f"it computes in {attention.states.dtype.name}, expected float32")
    if attention.zeroed and not assume_real_tokens:
        raise Mismatch(
            "queries that see no key at all get probabilities of 0, the op's attend evenly "
            "(assume_real_tokens says that every sequence has a real token)"
        )
    sizes = prober.sizes(attention)
    weights = dict(attention.weights)
    total = structure.residual_sum(
        view, attention.output, attention.states, "the attention's output"
    )
    between, gamma, beta, epsilon = prober.layer_norm(total, sizes[0], "the attention")
    weights["attr_output_layernorm_gamma"], weights["attr_output_layernorm_beta"] = gamma, beta
    before = structure.dense_after(view, between, "the first layer norm", "inter", weights)
    inner = weights["inter_bias"].shape.num_elements()
    found = structure.product_of(view, before, _MOST_OPS)
    if found is None or inner is None:
        raise Mismatch("no second product of the feed-forward network was found")
    activation = prober.activation(before, found[1], inner, sizes[0])
    after = structure.dense_after(view, found[1], "the activation", "output", weights)
    total = structure.residual_sum(view, after, between, "the feed-forward network's output")
    output, gamma, beta, epsilon_2 = prober.layer_norm(total, sizes[0], "the feed-forward network")
    weights["output_layernorm_gamma"], weights["output_layernorm_beta"] = gamma, beta
    if epsilon != epsilon_2:
        raise Mismatch(f"the layer norms' epsilons are {epsilon:g} and {epsilon_2:g}, expected one")
    hidden = sizes[0].hidden
    _check_shapes(weights, hidden, inner)
    reasons: list[str] = []
    for heads in _head_counts(attention, weights, hidden):
        layer = Layer(
            label=label,
            softmax=softmax.name,
            states=attention.states,
            output=output,
            weights={w.op_input: weights[w.op_input] for w in spec.LAYER_WEIGHTS},
            adders=attention.adders,
            head_shape=attention.head_shape,
            heads=heads,
            size=hidden // heads,
            inner=inner,
            activation=activation,
            epsilon=epsilon,
        )
        try:
            prober.check_layer(layer, sizes)
        except Mismatch as error:
            reasons.append(str(error))
        else:
            return layer
    # Where the product's axes are in another order the softmax may be over the right one or not.
    axis = f"softmax axis is {4 + attention.key_axis}, expected -1: "
    raise Mismatch((axis if attention.key_axis != -1 else "") + reasons[0])


def _check_shapes(weights: dict[str, tf.Tensor], hidden: int, inner: int) -> None:
    """Refuses weights that are not of the sizes of a layer.

    Raises:
      Mismatch: Naming the first.
    """
    for weight in spec.LAYER_WEIGHTS:
        tensor, expected = weights[weight.op_input], weight.sizes(hidden, inner)
        if tensor.shape.num_elements() != math.prod(expected):
            raise Mismatch(
                f"{weight.op_input} ({tensor.name}) has shape {tensor.shape}, expected "
                f"{list(expected)}"
            )


def _head_counts(attention: Attention, weights: dict[str, tf.Tensor], hidden: int) -> Iterator[int]:
    """Yields how many heads there may be: as the graph tells, else all that divide H."""
    scores, kernel = attention.softmax.outputs[0].shape, weights["attr_q_kernel"].shape
    if scores.rank == 4 and scores[1] is not None:
        found = [scores[1]]
    elif kernel.rank == 3:
        found = [kernel[1]]
    else:
        found = [n for n in range(1, hidden + 1) if hidden % n == 0]
    yield from (n for n in found if n and hidden % n == 0)


# ---- Activations ---------------------------------------------------------------------------------


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# The op's, and others that a reason may name.
_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "the identity": lambda x: x,
    "silu": lambda x: x * _sigmoid(x),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "squared relu": lambda x: np.square(np.maximum(x, 0)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
}
