"""Finds the parts of a BERT layer by what they compute from what, whatever they are called.

Starts from a softmax and goes back to the projections and forth to the residual sums. Shapes are
not followed here: `probes` runs what was found and sees whether it is what it looks like.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from fastertransformer_tf.rewriting import layers, views
from fastertransformer_tf.rewriting.layers import Attention, Mismatch

_PRODUCTS = frozenset("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum".split())
_SUMS = frozenset("Add AddV2 BiasAdd".split())
_SCALINGS = frozenset("Mul RealDiv Div".split())
_SELECTIONS = frozenset("Select SelectV2".split())
# How far a search goes through what only changes shapes.
_MOST_STEPS = 16


@dataclasses.dataclass
class _Scores:
    """Where scores come from.

    Attributes:
      product: The product of queries and keys.
      key_axis: The axis of the product that the softmax is over.
      adders: As of `Attention`.
    """

    product: Any
    key_axis: int
    adders: list[tf.Tensor]


def is_attention(view: views.View, softmax: Any) -> bool:
    """Whether a softmax is of the products of two tensors, neither of which is a weight."""
    try:
        return _product_before(view, softmax.inputs[0]) is not None
    except Mismatch:
        return True


def find_attention(view: views.View, softmax: Any) -> Attention:
    """Finds the attention around a softmax.

    Raises:
      Mismatch: It is not BERT's.
    """
    shape = softmax.inputs[0].shape
    scores = _product_before(view, softmax.inputs[0])
    if scores is None:
        raise Mismatch("the scores are no product of queries and keys")
    if shape.rank not in (None, 4):
        raise Mismatch(f"softmax has shape {shape}, expected [B,N,S,S]")
    query, key = _query_and_key(scores)
    weights: dict[str, tf.Tensor] = {}
    reshapes: list[Any] = []
    states = _projection(view, query, "query", "attr_q", weights, reshapes)
    to_states = _projection(view, key, "key", "attr_k", weights)
    probabilities, zeroed = _without_selection(view, softmax.outputs[0])
    context = _next_product(view, probabilities, "the probabilities")
    value = _other_input(view, context, probabilities)
    if view.is_static(value):
        raise Mismatch(f"the values are the weight {value.name}, expected a projection")
    v_states = _projection(view, value, "value", "attr_v", weights)
    for name, tensor in (("key", to_states), ("value", v_states)):
        if tensor.name != states.name:
            raise Mismatch(
                f"{name} reads {tensor.name} and query reads {states.name}, expected one tensor "
                "(cross attention)"
            )
    output = dense_after(view, context.outputs[0], "the context", "attr_output", weights)
    heads = [
        op.inputs[1] for op in reshapes if op.type == "Reshape" and op.outputs[0].shape.rank == 4
    ]
    return Attention(
        softmax=softmax,
        states=states,
        weights=weights,
        adders=scores.adders,
        head_shape=heads[0] if heads else None,
        output=output,
        key_axis=scores.key_axis,
        zeroed=zeroed,
    )


# ---- From the softmax back -----------------------------------------------------------------------


def _product_before(view: views.View, scores: tf.Tensor) -> _Scores | None:
    """Finds the product that scores come from, and what is added to it on the way.

    Raises:
      Mismatch: Something else is done to them on the way.
    """
    adders: list[tf.Tensor] = []
    axis = -1
    tensor = scores
    for _ in range(_MOST_STEPS):
        op = tensor.op
        if op.type in _PRODUCTS:
            is_weight = [view.is_static(t) for t in op.inputs]
            if any(is_weight) or len(op.inputs) != 2:
                return None
            return _Scores(op, axis, adders)
        if op.type == "Transpose":
            if view.is_static(op.inputs[1]):
                order = view.run(op.inputs[1], {})
                axis = int(order[axis]) - len(order)
            tensor = op.inputs[0]
        elif op.type in views.LAYOUT_OPS or op.type == "Cast":
            tensor = op.inputs[0]
        elif op.type in _SUMS:
            first, second = op.inputs
            if view.scalar(second) is not None:
                tensor = first
            elif view.scalar(first) is not None:
                tensor = second
            elif _leads_to_product(view, first):
                if _leads_to_product(view, second):
                    raise Mismatch(
                        f"{op.name} adds two products to the scores (relative positions?)"
                    )
                adders.append(second)
                tensor = first
            elif _leads_to_product(view, second):
                adders.append(first)
                tensor = second
            else:
                return None
        elif op.type in _SCALINGS:
            scalars = [view.scalar(t) for t in op.inputs]
            if scalars[1] is not None:
                tensor = op.inputs[0]
            elif scalars[0] is not None and op.type == "Mul":
                tensor = op.inputs[1]
            elif any(_leads_to_product(view, t) for t in op.inputs):
                raise Mismatch(f"the scores pass through {op.name} ({op.type})" + _random(view, op))
            else:
                return None
        elif op.type in _SELECTIONS and _leads_to_product(view, op.inputs[1]):
            hidden = view.scalar(op.inputs[2])
            if hidden is None or not layers.HIGHEST_MASK >= hidden > -math.inf:
                raise Mismatch(
                    f"{op.name} puts {hidden} in the place of masked scores, expected a finite "
                    f"number of at most {layers.HIGHEST_MASK:g}"
                )
            adders += _conditions(op.inputs[0])
            tensor = op.inputs[1]
        elif any(_leads_to_product(view, t) for t in op.inputs):
            raise Mismatch(f"the scores pass through {op.name} ({op.type})" + _random(view, op))
        else:
            return None
    return None


def _conditions(condition: tf.Tensor) -> list[tf.Tensor]:
    """Splits a condition into those that must all hold, without such as always do."""
    op = condition.op
    if op.type == "LogicalAnd":
        return [c for t in op.inputs for c in _conditions(t)]
    if op.type == "OnesLike":
        return []
    if op.type == "Fill" and tf.get_static_value(op.inputs[1]) is not None:
        return [] if bool(tf.get_static_value(op.inputs[1])) else [condition]
    return [condition]


def _leads_to_product(view: views.View, tensor: tf.Tensor, steps: int = _MOST_STEPS) -> bool:
    """Whether a tensor is a product of two tensors that are no weights, scaled or added to."""
    if steps == 0 or view.is_static(tensor) or not tensor.dtype.is_floating:
        return False
    op = tensor.op
    if op.type in _PRODUCTS:
        return not any(view.is_static(t) for t in op.inputs)
    passes = views.LAYOUT_OPS | _SUMS | _SCALINGS | _SELECTIONS | {"Cast", "Sub", "Tanh"}
    if op.type not in passes:
        return False
    inputs = op.inputs[:1] if op.type in views.LAYOUT_OPS else op.inputs
    return any(_leads_to_product(view, t, steps - 1) for t in inputs)


def _query_and_key(scores: _Scores) -> tuple[tf.Tensor, tf.Tensor]:
    """Tells which factor of the scores is the query: the softmax is over an axis of the keys."""
    first, second = scores.product.inputs
    of_first = scores.key_axis == -2
    if scores.product.type == "Einsum":
        inputs, _, output = scores.product.get_attr("equation").decode().partition("->")
        label = output[scores.key_axis] if len(output) >= -scores.key_axis else ""
        of_first = label not in inputs.split(",")[1]
    return (second, first) if of_first else (first, second)


def _projection(
    view: views.View,
    tensor: tf.Tensor,
    name: str,
    prefix: str,
    weights: dict[str, tf.Tensor],
    reshapes: list[Any] | None = None,
) -> tf.Tensor:
    """Goes back from queries, keys or values over bias and kernel to what they are made of.

    Raises:
      Mismatch: They are no dense layer of anything.
    """
    bias = None
    for _ in range(_MOST_STEPS):
        op = tensor.op
        if op.type in _PRODUCTS:
            kernel, states = _kernel_and_states(view, op, name)
            if bias is None:
                raise Mismatch(f"{name} has no bias")
            weights[f"{prefix}_kernel"], weights[f"{prefix}_bias"] = kernel, bias
            return view.source(states)
        if op.type in views.LAYOUT_OPS:
            if reshapes is not None:
                reshapes.append(op)
            tensor = op.inputs[0]
            continue
        is_scaling = op.type in _SCALINGS and view.scalar(op.inputs[1]) is not None
        if is_scaling or (op.type == "Mul" and view.scalar(op.inputs[0]) is not None):
            tensor = op.inputs[0] if view.scalar(op.inputs[1]) is not None else op.inputs[1]
        elif op.type in _SUMS and bias is None and any(view.is_static(t) for t in op.inputs):
            tensor, bias = _split_static(view, op)
        else:
            raise Mismatch(
                f"{name} passes through {op.name} ({op.type}), expected a product with a kernel "
                "and a bias" + _random(view, op)
            )
    raise Mismatch(f"{name} is no dense layer")


def _split_static(view: views.View, op: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the input of a sum that is computed, and the weight that is added to it."""
    first, second = op.inputs
    if view.is_static(second):
        return first, view.source(second)
    return second, view.source(first)


def _kernel_and_states(view: views.View, product: Any, name: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the weight of a product, and its other factor.

    Raises:
      Mismatch: It is no product with a weight, or the weight is used transposed.
    """
    if len(product.inputs) != 2:
        raise Mismatch(f"{name}: {product.name} has {len(product.inputs)} factors, expected 2")
    static = [view.is_static(t) for t in product.inputs]
    if static == [False, False]:
        raise Mismatch(f"{name}: {product.name} is a product without a weight")
    if all(static):
        raise Mismatch(f"{name} depends on no input")
    kernel, states = product.inputs if static[0] else tuple(product.inputs)[::-1]
    for attribute in ("transpose_a", "transpose_b", "adj_x", "adj_y"):
        if attribute in product.node_def.attr and product.get_attr(attribute):
            raise Mismatch(f"{name}: {product.name} uses its kernel transposed")
    return view.source(kernel), states


# ---- From the softmax forth ----------------------------------------------------------------------


def _step(
    view: views.View, tensor: tf.Tensor, accepts: Callable[[Any], bool], what: str, expected: str
) -> Any:
    """Finds the one op of a kind that uses a tensor, behind what only changes its shape.

    Raises:
      Mismatch: There is none or several; the reason names what there is instead.
    """
    found: dict[str, Any] = {}
    others: list[Any] = []
    todo, seen = [tensor], set[str]()
    while todo and len(seen) < 4 * _MOST_STEPS:
        current = todo.pop()
        for op in view.users(current):
            if op.name in seen:
                continue
            seen.add(op.name)
            if accepts(op):
                found[op.name] = op
            elif op.type in views.LAYOUT_OPS and op.inputs[0].name == current.name:
                todo.append(op.outputs[0])
            else:
                others.append(op)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise Mismatch(f"{what} is used by {len(found)} of {expected}, expected one")
    for op in others:
        # The random numbers come in one or two ops later, after the scaling.
        for later in (op, *(t.op for o in op.outputs[:1] for t in view.behind(o, 4))):
            name = view.random_before(later, 4)
            if name:
                raise Mismatch(f"dropout is on: {what} passes through {op.name} with {name}")
    there = ", ".join(f"{op.name} ({op.type})" for op in others[:2]) or "nothing"
    raise Mismatch(f"{what}: used by {there}, expected {expected}")


def _without_selection(view: views.View, probabilities: tf.Tensor) -> tuple[tf.Tensor, bool]:
    """Passes a selection that makes masked probabilities 0, and says whether there is one.

    They are 0 already but where a query may see no key at all.
    """
    users = view.users(probabilities)
    if len(users) == 1 and users[0].type in _SELECTIONS:
        selection = users[0]
        if selection.inputs[1].name == probabilities.name and view.scalar(selection.inputs[2]) == 0:
            return selection.outputs[0], True
    return probabilities, False


def _next_product(view: views.View, tensor: tf.Tensor, what: str) -> Any:
    return _step(view, tensor, lambda op: op.type in _PRODUCTS, what, "a product with the values")


def _other_input(view: views.View, op: Any, tensor: tf.Tensor) -> tf.Tensor:
    """Returns the input of an op of two that is not a tensor in another shape."""
    sources = [view.source(t).name == tensor.name for t in op.inputs]
    if len(op.inputs) != 2 or sources == [True, True]:
        raise Mismatch(f"{op.name} has {len(op.inputs)} factors, expected 2 different ones")
    return op.inputs[1 if sources[0] else 0]


def dense_after(
    view: views.View, tensor: tf.Tensor, what: str, prefix: str, weights: dict[str, tf.Tensor]
) -> tf.Tensor:
    """Finds the dense layer behind a tensor: a product with a kernel, and a bias.

    Args:
      view: The graph.
      tensor: What the layer computes from.
      what: Its name in reasons.
      prefix: `inter` for `inter_kernel` and `inter_bias`.
      weights: The two are put here.

    Returns:
      The layer's result.

    Raises:
      Mismatch: There is none.
    """

    def is_dense(op: Any) -> bool:
        return op.type in _PRODUCTS and any(view.is_static(t) for t in op.inputs)

    product = _step(view, tensor, is_dense, what, "a product with a kernel")
    weights[f"{prefix}_kernel"], _ = _kernel_and_states(view, product, what)
    result = product.outputs[0]
    name = f"the product of {what}"

    def is_bias(op: Any) -> bool:
        return op.type in _SUMS and any(view.is_static(t) for t in op.inputs)

    total = _step(view, result, is_bias, name, "the sum with a bias")
    _, weights[f"{prefix}_bias"] = _split_static(view, total)
    return total.outputs[0]


def residual_sum(view: views.View, tensor: tf.Tensor, residual: tf.Tensor, what: str) -> tf.Tensor:
    """Finds the sum of a branch's result with what the branch was computed from.

    Raises:
      Mismatch: There is no sum, or it is with something else.
    """
    total = _step(view, tensor, lambda op: op.type in ("Add", "AddV2"), what, "the residual's sum")
    other = view.source(_other_input(view, total, tensor))
    if other.name != residual.name:
        raise Mismatch(
            f"{what} is added to {other.name}, expected the branch's own input {residual.name} "
            "(pre-layer-norm?)"
        )
    return total.outputs[0]


def product_of(view: views.View, tensor: tf.Tensor, limit: int) -> tuple[Any, tf.Tensor] | None:
    """Finds the first product with a weight behind a tensor, and the factor that is none."""
    for found in view.behind(tensor, limit):
        op = found.op
        if op.type in _PRODUCTS:
            static = [view.is_static(t) for t in op.inputs]
            if sum(static) == 1:
                return op, op.inputs[0 if static[1] else 1]
    return None


def _random(view: views.View, op: Any) -> str:
    """Says that dropout is on where an op depends on a random one."""
    name = view.random_before(op)
    return f"; dropout is on: {name}" if name else ""


__all__ = [
    "dense_after",
    "find_attention",
    "is_attention",
    "layers",
    "product_of",
    "residual_sum",
]
