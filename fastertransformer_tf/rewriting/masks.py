"""Finds out which keys are masked, from what is added to the scores.

Graphs add a large negative number to the scores of keys that may not be seen. The op takes the mask
itself: of tokens [B,S], which may also say what padding there is to remove, or of pairs of tokens
[B,1,S,S]. Which of the two a graph has is proven by running it on masks of random tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from fastertransformer_tf.rewriting import views
from fastertransformer_tf.rewriting.layers import HIGHEST_MASK, LOWEST_MASK, Mismatch, as_added
from fastertransformer_tf.rewriting.probes import Sizes

# google's; the op adds (1 - mask) * this to the scores.
GOOGLE = -10000.0
# How many ops may lie between the mask of tokens and what is added to the scores.
_MOST_STEPS = 24


@dataclasses.dataclass(frozen=True)
class TokenMask:
    """Keys are masked by token.

    Attributes:
      tensor: [B,S], 1 (or True) for tokens that may be seen, 0 for others.
      added: What is added to the scores of the others, LOWEST_MASK or more.
      nonzero: Any number but 0 is as good as 1; else what is added is linear in it.
    """

    tensor: tf.Tensor
    added: float
    nonzero: bool


@dataclasses.dataclass(frozen=True)
class PairMask:
    """Keys are masked by query and key.

    Attributes:
      adders: Their sum is 0 or at most -1000 for each pair; those of type bool hold for pairs that
        may be seen. Each broadcasts to [B,1,S,S].
    """

    adders: tuple[tf.Tensor, ...]


Mask = TokenMask | PairMask | None


def find_mask(
    view: views.View, adders: Sequence[tf.Tensor], sizes: Sequence[Sizes], seed: int = 2
) -> Mask:
    """Finds the mask behind what is added to the scores; None where nothing is.

    Runs inside `View.session`.

    Args:
      view: The graph.
      adders: What is added to the scores.
      sizes: To run with.
      seed: Of the random masks.

    Raises:
      Mismatch: What is added is no mask.
    """
    if not adders:
        return None
    rng = np.random.default_rng(seed)
    if len(adders) == 1:
        found: TokenMask | None = None
        for candidate in _token_candidates(view, adders[0]):
            found = _token_mask(view, adders[0], candidate, sizes, rng) or found
        if found is not None:
            return found
    _check_pairs(view, adders, sizes, rng)
    return PairMask(tuple(adders))


# ---- Masks of tokens -----------------------------------------------------------------------------


def _token_candidates(view: views.View, adder: tf.Tensor) -> list[tf.Tensor]:
    """Lists the matrices that what is added is computed from alone, the nearest first."""
    found = []
    tensor = adder
    for _ in range(_MOST_STEPS):
        if tensor.shape.rank == 2:
            found.append(tensor)
        values = [t for t in tensor.op.inputs if not view.is_shape_only(t)]
        if len({t.name for t in values}) != 1 or views.is_stateful(tensor.op):
            break
        tensor = values[0]
    return found


def _token_mask(
    view: views.View,
    adder: tf.Tensor,
    mask: tf.Tensor,
    sizes: Sequence[Sizes],
    rng: np.random.Generator,
) -> TokenMask | None:
    """Sees whether `adder` = (1 - mask) * C with a mask of keys, or with `mask != 0` for it.

    The mask has also values that are neither 0 nor 1, where its type does: the op does with them
    what the graph does.
    """
    dtype = mask.dtype.base_dtype
    if not (dtype.is_bool or dtype.is_integer or dtype.is_floating):
        return None
    try:
        weights, shapes = view.leaves(adder, [mask])
    except views.Depends:
        return None
    if weights:
        return None
    added: float | None = None
    fits = {False: True, True: True}  # By `nonzero`.
    for size in sizes:
        shape = size.shape_of(mask)
        if shape != [size.batch, size.length]:
            return None
        values = rng.integers(0, 2, shape)
        values[:, 0], values[0, :2], values[-1, 1:] = 1, [1, 0], 0
        if not dtype.is_bool:
            values[:, -1] = 2
        given = values.astype(dtype.as_numpy_dtype)
        feeds = {
            t.name: np.zeros(size.shape_of(t), t.dtype.base_dtype.as_numpy_dtype)
            for t in shapes.values()
        }
        try:
            actual = as_added(view.run(adder, {**feeds, mask.name: given})).astype(np.float64)
            actual = np.broadcast_to(actual, [size.batch, 1, size.length, size.length])
        except (tf.errors.OpError, ValueError):
            return None
        if added is None:
            added = float(actual[0, 0, 0, 1])
        if not HIGHEST_MASK >= added > -np.inf:
            return None
        for nonzero in fits:
            keys = (given != 0 if nonzero else given).astype(np.float64)
            expected = (1.0 - keys)[:, np.newaxis, np.newaxis, :] * added
            fits[nonzero] &= np.allclose(actual, expected, rtol=1e-6, atol=0)
    if added is None or not any(fits.values()):
        return None
    return TokenMask(mask, max(added, LOWEST_MASK), nonzero=not fits[False])


# ---- Masks of pairs ------------------------------------------------------------------------------


def _check_pairs(
    view: views.View,
    adders: Sequence[tf.Tensor],
    sizes: Sequence[Sizes],
    rng: np.random.Generator,
) -> None:
    """Sees that what is added masks pairs and does nothing else.

    Its inputs get random zeros and ones; of a floating-point input google's own formula is exact
    for any value.

    Raises:
      Mismatch: It does not.
    """
    for adder in adders:
        inputs, shapes = _inputs(view, adder)
        for size in sizes:
            feeds = {
                t.name: np.zeros(size.shape_of(t), t.dtype.base_dtype.as_numpy_dtype)
                for t in shapes
            }
            for tensor in inputs:
                value = rng.integers(0, 2, size.shape_of(tensor))
                feeds[tensor.name] = value.astype(tensor.dtype.base_dtype.as_numpy_dtype)
            try:
                actual = as_added(view.run(adder, feeds))
            except (tf.errors.OpError, ValueError) as error:
                reason = views.reason_of(error)
                raise Mismatch(
                    f"{adder.name}, added to the scores, cannot be run: {reason}"
                ) from error
            masks = (actual <= HIGHEST_MASK) & np.isfinite(actual)
            if not (masks | (actual == 0)).all():
                bad = actual[~(masks | (actual == 0))].ravel()[0]
                raise Mismatch(
                    f"{adder.name} adds {bad:g} to a score, expected 0 or a mask of at most "
                    f"{HIGHEST_MASK:g}"
                )


def _inputs(view: views.View, adder: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Lists the inputs of the graph that a mask is made of, and what only lends its shape.

    Raises:
      Mismatch: It depends on a weight or on something random.
    """
    inputs: dict[str, tf.Tensor] = {}
    todo, seen = [adder], set()
    while todo:
        tensor = todo.pop()
        op = tensor.op
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        if view.is_read(op) or views.is_random(op):
            raise Mismatch(
                f"{adder.name}, which is added to the scores, depends on {op.name} ({op.type}), "
                "expected a mask"
            )
        if view.is_shape_only(tensor):
            continue
        if not op.inputs:
            inputs[tensor.name] = tensor
        todo += op.inputs
    try:
        weights, shapes = view.leaves(adder, list(inputs.values()))
    except views.Depends as error:
        raise Mismatch(f"{adder.name}, added to the scores, is no mask: {error}") from error
    del weights  # Constants: they are part of what is run.
    return list(inputs.values()), list(shapes.values())
