"""Finds all layers of a body and joins those that one op can compute."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from fastertransformer_tf.rewriting import layers, masks, probes, structure, views

# `layer_3`, `layer_._3` (Hugging Face), `layers.3`, `block3`.
_NUMBERED = re.compile(r"(?:^|/|_)(?:layers?|blocks?)[._]*(\d+)(?=/|_|$)")


@dataclasses.dataclass
class Encoder:
    """Layers, each computed from the one before, that have the same sizes and mask.

    Attributes:
      layers: First to last.
      mask: Which keys may be seen.
    """

    layers: list[layers.Layer]
    mask: masks.Mask


@dataclasses.dataclass
class Found:
    """What a body holds.

    Attributes:
      encoders: What the op can compute.
      left: Attentions that it cannot, with the reasons.
    """

    encoders: list[Encoder] = dataclasses.field(default_factory=list)
    left: list[layers.LeftAlone] = dataclasses.field(default_factory=list)


# Passes an iterable on and shows how far it is; the text says what is done.
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def silent(items: Iterable[Any], text: str) -> Iterable[Any]:
    """Shows nothing."""
    del text
    return items


def find(view: views.View, progress: Progress = silent, assume_real_tokens: bool = False) -> Found:
    """Finds the encoders of a body, and proves that the op computes the same.

    Args:
      view: The body.
      progress: Shows how far it is.
      assume_real_tokens: As of `probes.find_layer`.
    """
    result = Found()
    with view.session():
        prober = probes.Prober(view)
        softmaxes = [
            op
            for op in view.graph.get_operations()
            if op.type == "Softmax" and structure.is_attention(view, op)
        ]
        labelled = list(zip(softmaxes, _labels(softmaxes), strict=True))
        for softmax, label in progress(labelled, "checking layers"):
            try:
                layer = probes.find_layer(prober, view, softmax, label, assume_real_tokens)
                sizes = [probes.Sizes(b, s, layer.hidden) for b, s in _mask_sizes(view, layer)]
                mask = masks.find_mask(view, layer.adders, sizes)
            except layers.Mismatch as error:
                result.left.append(layers.LeftAlone(label, softmax.name, str(error)))
            else:
                _join(view, result.encoders, layer, mask)
    return result


def _labels(softmaxes: list[Any]) -> list[str]:
    """Names the layers: by the number in their scope, or in order among those named alike."""
    counts: Counter[str] = Counter()
    labels = []
    for softmax in softmaxes:
        numbered = _NUMBERED.findall(softmax.name)
        stem = re.sub(r"[._]*\d+", "", softmax.name)
        labels.append(f"layer_{numbered[-1] if numbered else counts[stem]}")
        counts[stem] += 1
    return labels


def _mask_sizes(view: views.View, layer: layers.Layer) -> list[tuple[int, int]]:
    """Chooses B and S to try masks with: small ones, but where the graph fixes them."""
    scores = view.graph.get_operation_by_name(layer.softmax).outputs[0].shape
    batch, length = (scores[0], scores[3]) if scores.rank == 4 else (None, None)
    if layer.states.shape.rank == 3:
        batch = batch or layer.states.shape[0]
        length = length or layer.states.shape[1]
    return list(dict.fromkeys((batch or b, length or s) for b, s in ((3, 6), (2, 9))))


def _join(view: views.View, encoders: list[Encoder], layer: layers.Layer, mask: masks.Mask) -> None:
    """Adds a layer to the encoder that it goes on from, or begins another."""
    for encoder in encoders:
        last = encoder.layers[-1]
        follows = view.source(last.output).name == layer.states.name
        if follows and _alike(last, layer) and _same_mask(view, encoder.mask, mask):
            encoder.layers.append(layer)
            return
    encoders.append(Encoder([layer], mask))


def _alike(first: layers.Layer, second: layers.Layer) -> bool:
    """Whether two layers have the sizes and attributes that are one op's."""

    def attributes(layer: layers.Layer) -> tuple[Any, ...]:
        return layer.heads, layer.size, layer.inner, layer.activation, layer.epsilon

    return attributes(first) == attributes(second)


def _same_mask(view: views.View, first: masks.Mask, second: masks.Mask) -> bool:
    """Whether two masks are computed in the same way from the same tensors."""
    if isinstance(first, masks.TokenMask) and isinstance(second, masks.TokenMask):
        alike = (first.added, first.nonzero) == (second.added, second.nonzero)
        return alike and same(first.tensor, second.tensor)
    if isinstance(first, masks.PairMask) and isinstance(second, masks.PairMask):
        return len(first.adders) == len(second.adders) and all(
            same(a, b) for a, b in zip(first.adders, second.adders, strict=True)
        )
    return first is None and second is None


def same(first: tf.Tensor, second: tf.Tensor) -> bool:
    """Whether two tensors are one, or the same ops on the same tensors."""
    todo, seen = [(first, second)], set()
    while todo:
        a, b = todo.pop()
        if a.name == b.name or (a.name, b.name) in seen:
            continue
        seen.add((a.name, b.name))
        if len(seen) > 1000 or views.is_stateful(a.op) or not _same_op(a, b):
            return False
        todo += zip(a.op.inputs, b.op.inputs, strict=True)
    return True


def _same_op(a: tf.Tensor, b: tf.Tensor) -> bool:
    """Whether two tensors are the same output of ops of one kind with the same attributes."""
    if a.op.type != b.op.type or a.value_index != b.value_index:
        return False
    if len(a.op.inputs) != len(b.op.inputs) or (not a.op.inputs and a.op.type != "Const"):
        return False
    first, second = a.op.node_def.attr, b.op.node_def.attr
    names = {n for n in {*first, *second} if not n.startswith("_")}
    return all(first[n] == second[n] for n in names)
