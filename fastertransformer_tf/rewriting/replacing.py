"""Puts a BertEncoder op into a body in the place of the layers that it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2

from fastertransformer_tf import ops, spec
from fastertransformer_tf.graphs import float_types
from fastertransformer_tf.models.masks import lengths_and_mask
from fastertransformer_tf.rewriting import bodies, layers, masks, views
from fastertransformer_tf.rewriting.encoders import Encoder

# Variables that are assigned by writing into the buffer that they have.
_REFERENCES = ("VariableV2", "Variable")


@dataclasses.dataclass(frozen=True)
class Constants:
    """Weights in another type than the graph's, which become constants of the new graph.

    Attributes:
      layers: Op input to array, for each layer.
      scales: The scale list of each layer; none without int8.
      shifts: What each layer's input has to be less by, [H], where a calibration moved the channels
        (`quantization.fold_shift`); none if it did not.
    """

    layers: Sequence[Mapping[str, np.ndarray]]
    scales: Sequence[np.ndarray] = ()
    shifts: Sequence[np.ndarray] = ()


@dataclasses.dataclass(frozen=True)
class Precision:
    """What the op computes in.

    Attributes:
      floatx: float32, float16 or bfloat16.
      remove_padding: Compute real tokens only.
      int8_mode: 0, 1, 2 or 3.
    """

    floatx: str = "float32"
    remove_padding: bool = False
    int8_mode: int = 0

    @property
    def has_constants(self) -> bool:
        """Whether the weights are others than the graph's."""
        return self.floatx != "float32" or self.int8_mode != 0


@dataclasses.dataclass(frozen=True)
class Replaced:
    """What a replacement did.

    Attributes:
      node: Name of the op's node.
      padding_removed: The op computes real tokens only.
      inner_outputs: The layers, by index, whose outputs are used by others too.
    """

    node: str
    padding_removed: bool
    inner_outputs: list[int]


def replace(
    view: views.View,
    encoder: Encoder,
    precision: Precision,
    constants: Constants | None,
    library: graph_pb2.GraphDef,
) -> Replaced:
    """Replaces the layers of an encoder in the body of a view.

    The op that gives the last layer's output keeps its name and becomes an identity of the new op's
    result, so that all that uses it, inside and outside of the graph, stays as it is.

    Args:
      view: The graph that the encoder was found in; its body is changed.
      encoder: The layers.
      precision: What the op computes in.
      constants: The weights where they are not the graph's.
      library: The functions that the new nodes need are added here.
    """
    body = view.body
    inner = _inner_outputs(view, encoder)
    removes = precision.remove_padding and isinstance(encoder.mask, masks.TokenMask)
    prefix = _unused_name(body, "ft_bert_encoder")
    inputs = _Inputs(encoder, with_weights=constants is None)
    # Outputs that only might be fetched cost a second op, which TensorFlow runs only then.
    separate = bool(inner) and not body.certain
    all_layers = bool(inner) and not separate

    def build(*tensors: tf.Tensor) -> list[tf.Tensor]:
        given = dict(zip(inputs.names, tensors, strict=True))
        built = _build(given, encoder, precision, constants, removes, all_layers)
        if not separate:
            return built
        return [
            *_build(given, encoder, precision, constants, removes, True)[:-1],
            built[-1],
        ]

    traced = tf.function(build, autograph=False).get_concrete_function(
        *(tf.TensorSpec(t.shape, t.dtype.base_dtype) for t in inputs.tensors)
    )
    results = _splice(body, traced, [t.name for t in inputs.tensors], prefix, library)
    outputs = [layer.output for layer in encoder.layers]
    used = range(len(outputs)) if len(results) > 1 else [len(outputs) - 1]
    for index, result in zip(used, results, strict=True):
        if index in inner or index == len(outputs) - 1:
            _take_over(body, outputs[index].op.name, result, encoder.layers[0].states.dtype)
    _prune(view, encoder)
    return Replaced(f"{prefix}/BertEncoder", removes, inner)


class _Inputs:
    """The tensors of the old graph that the new nodes read."""

    def __init__(self, encoder: Encoder, *, with_weights: bool) -> None:
        first = encoder.layers[0]
        found: dict[str, tf.Tensor] = {"states": first.states}
        if first.states.shape.rank == 2:
            assert first.head_shape is not None
            found["head_shape"] = first.head_shape
        if isinstance(encoder.mask, masks.TokenMask):
            found["mask"] = encoder.mask.tensor
        elif isinstance(encoder.mask, masks.PairMask):
            for index, adder in enumerate(encoder.mask.adders):
                found[f"adder_{index}"] = adder
        if with_weights:
            for index, layer in enumerate(encoder.layers):
                for name, tensor in layer.weights.items():
                    found[f"{index}/{name}"] = tensor
        self.names = list(found)
        self.tensors = list(found.values())


def _build(
    given: Mapping[str, tf.Tensor],
    encoder: Encoder,
    precision: Precision,
    constants: Constants | None,
    removes: bool,
    all_layers: bool,
) -> list[tf.Tensor]:
    """Builds the op; its results have the type and rank of the old layers' outputs."""
    first = encoder.layers[0]
    dtype = float_types.float_type(precision.floatx)
    states = given["states"]
    if "head_shape" in given:
        shape = tf.concat([given["head_shape"][:2], [first.hidden]], 0)
        states = tf.reshape(states, shape)
    lengths, mask = _lengths_and_mask(given, encoder.mask, tf.shape(states), dtype, removes)
    if constants is None:
        weights: list[dict[str, Any]] = [
            {
                w.op_input: tf.reshape(
                    given[f"{index}/{w.op_input}"], w.sizes(first.hidden, first.inner)
                )
                for w in spec.LAYER_WEIGHTS
            }
            for index in range(len(encoder.layers))
        ]
        scales: list[Any] = []
    else:
        weights = [
            {name: tf.constant(value) for name, value in layer.items()}
            for layer in constants.layers
        ]
        scales = [tf.constant(value) for value in constants.scales]
    shifts = [] if constants is None else [tf.cast(z, states.dtype) for z in constants.shifts]
    outputs = ops.bert_encoder(
        tf.cast(states - shifts[0] if shifts else states, dtype),
        lengths,
        mask,
        weights,
        head_num=first.heads,
        size_per_head=first.size,
        num_outputs=len(encoder.layers) if all_layers else 1,
        remove_padding=removes,
        int8_mode=precision.int8_mode,
        amax_list=scales,
        activation=first.activation,
        layernorm_epsilon=first.epsilon,
        cache_weights=constants is not None or _keep_their_buffers(encoder),
        name="BertEncoder",
    )
    # The rank of the outputs is that of the old ones, not of the input: one may be reshaped.
    results = []
    shown = encoder.layers if all_layers else encoder.layers[-1:]
    for index, (layer, output) in enumerate(zip(shown, outputs, strict=True), 1):
        output = tf.cast(output, states.dtype)
        if shifts and index < len(shown):
            output += shifts[index]  # The next layer's input.
        if layer.output.shape.rank == 2:
            output = tf.reshape(output, [-1, first.hidden])
        results.append(output)
    return results


def _lengths_and_mask(
    given: Mapping[str, tf.Tensor],
    mask: masks.Mask,
    shape: tf.Tensor,
    dtype: tf.DType,
    removes: bool,
) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    """Makes what the op takes of the graph's mask; see `lengths_and_mask`."""
    if isinstance(mask, masks.TokenMask):
        tokens = given["mask"]
        if mask.nonzero:
            tokens = tf.not_equal(tokens, tf.zeros([], tokens.dtype))
        if tokens.dtype == tf.bool:
            tokens = tf.cast(tokens, tf.int32)
        masked = 1 - mask.added / masks.GOOGLE
        return lengths_and_mask(tokens, dtype, removes, masked)
    if isinstance(mask, masks.PairMask):
        total = tf.zeros([], tf.float32)
        for index in range(len(mask.adders)):
            added = given[f"adder_{index}"]
            if added.dtype == tf.bool:
                added = tf.where(added, 0.0, layers.LOWEST_MASK)
            total = tf.maximum(total + added, layers.LOWEST_MASK)
        pairs = tf.broadcast_to(total, tf.stack([shape[0], 1, shape[1], shape[1]]))
        return None, tf.cast(1 - pairs / masks.GOOGLE, dtype)
    return None, None


def _keep_their_buffers(encoder: Encoder) -> bool:
    """Whether the weights are found again by their buffers: constants and resource variables."""

    def keeps(tensor: tf.Tensor) -> bool:
        op = tensor.op
        # Reads of variables that are arguments of a function are placeholders in a view.
        return op.type in ("Const", "ReadVariableOp", "Placeholder")

    return all(keeps(t) for layer in encoder.layers for t in layer.weights.values())


# ---- Changing the nodes --------------------------------------------------------------------------


def _unused_name(body: bodies.Body, name: str) -> str:
    """Returns a scope that no node of a body is in."""
    scopes = {node.name.partition("/")[0] for node in body.graph_def.node}
    index = 0
    while (f"{name}_{index}" if index else name) in scopes:
        index += 1
    return f"{name}_{index}" if index else name


def _splice(
    body: bodies.Body,
    traced: Any,
    inputs: Sequence[str],
    prefix: str,
    library: graph_pb2.GraphDef,
) -> list[str]:
    """Copies the nodes of a traced function into a body; returns the names of its results."""
    graph_def = traced.graph.as_graph_def()
    known = bodies.functions(library)
    renamed = {}
    for function in graph_def.library.function:
        name = function.signature.name
        new, index = f"{prefix}_{name}", 0
        while new in known:
            index += 1
            new = f"{prefix}_{index}_{name}"
        renamed[name] = new
    for function in graph_def.library.function:
        copied = library.library.function.add()
        copied.CopyFrom(function)
        copied.signature.name = renamed[function.signature.name]
        for node in copied.node_def:
            _rename_functions(node, renamed)
    given = {
        bodies.node_name(placeholder.name): name
        for placeholder, name in zip(traced.inputs, inputs, strict=True)
    }

    def new_name(name: str) -> str:
        if name.startswith("^"):
            return f"^{prefix}/{name[1:]}"
        node, _, index = name.partition(":")
        return given.get(node) or f"{prefix}/{node}" + (f":{index}" if index else "")

    for node in graph_def.node:
        if node.name in given:
            continue
        copied_node = body.graph_def.node.add()
        copied_node.CopyFrom(node)
        copied_node.name = f"{prefix}/{node.name}"
        for index, name in enumerate(node.input):
            copied_node.input[index] = new_name(name)
        _rename_functions(copied_node, renamed)
    return [bodies.tensor_name(new_name(t.name)) for t in traced.outputs]


def _rename_functions(node: node_def_pb2.NodeDef, renamed: Mapping[str, str]) -> None:
    """Gives the functions that a node names their new names."""
    node.op = renamed.get(node.op, node.op)
    for value in node.attr.values():
        called = [value.func] if value.HasField("func") else list(value.list.func)
        for function in called:
            function.name = renamed.get(function.name, function.name)


def _take_over(body: bodies.Body, name: str, result: str, dtype: tf.DType) -> None:
    """Makes a node the identity of another tensor."""
    for node in body.graph_def.node:
        if node.name == name:
            device = node.device
            node.Clear()
            node.name, node.op, node.device = name, "Identity", device
            node.input.append(result)
            node.attr["T"].type = dtype.as_datatype_enum
            return
    raise AssertionError(f"no node {name}")


def _inner_outputs(view: views.View, encoder: Encoder) -> list[int]:
    """Finds the layers but the last whose outputs are used by more than the next layer."""
    outputs = {layer.output.op.name: i for i, layer in enumerate(encoder.layers)}
    last = encoder.layers[-1].output.op.name
    hit = _reached(view.body, stop=outputs)
    return sorted(outputs[name] for name in hit & set(outputs) if name != last)


def _reached(body: bodies.Body, stop: Iterable[str], also: Iterable[str] = ()) -> set[str]:
    """Names the nodes that the results of a body depend on; those before `stop` are left out.

    Args:
      body: The nodes.
      stop: Whose inputs do not count.
      also: Nodes that count as results.
    """
    nodes = {node.name: node for node in body.graph_def.node}
    ends = set(stop)
    todo = [*also, *(bodies.node_name(name) for name in body.results)]
    todo += [n.name for n in body.graph_def.node if body.name and _has_effect(n)]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        if name not in ends:
            todo += [bodies.node_name(i) for i in nodes[name].input]
    return seen


def _has_effect(node: node_def_pb2.NodeDef) -> bool:
    """Whether a function's node runs for what it does."""
    return node.op in ("Assert", "Print", "PrintV2", "NoOp") or "Assign" in node.op


def _prune(view: views.View, encoder: Encoder) -> None:
    """Removes the nodes of the old layers that nothing needs any more, and their constants."""
    body = view.body
    alive = _reached(body, stop=(), also=body.kept)
    between = _region(view, encoder)
    dead = {
        node.name
        for node in body.graph_def.node
        if node.name in between and node.name not in alive and not node.op.startswith("Placeholder")
    }
    # What is computed from them and fetched by nobody.
    changed = True
    while changed:
        behind = {
            node.name
            for node in body.graph_def.node
            if node.name not in dead
            and node.name not in alive
            and any(bodies.node_name(i) in dead for i in node.input)
        }
        dead |= behind
        changed = bool(behind)
    used_before = {bodies.node_name(i) for n in body.graph_def.node for i in n.input}
    kept = [node for node in body.graph_def.node if node.name not in dead]
    used = {bodies.node_name(i) for n in kept for i in n.input}
    results = {bodies.node_name(name) for name in body.results}
    kept = [
        node
        for node in kept
        if node.op != "Const" or node.name in used | results or node.name not in used_before
    ]
    names = {node.name for node in kept}
    graph_def = graph_pb2.GraphDef(node=kept, versions=body.graph_def.versions)
    for node in graph_def.node:
        places = node.attr.get("_class")
        if places is not None and any(
            s.startswith(b"loc:@") and s[5:].decode() not in names for s in places.list.s
        ):
            del node.attr["_class"]
    body.graph_def.CopyFrom(graph_def)


def _region(view: views.View, encoder: Encoder) -> set[str]:
    """Names the nodes that compute the old layers from their input, masks and weights."""
    first, last = encoder.layers[0], encoder.layers[-1]
    stop = {first.states.op.name}
    stop |= {t.op.name for layer in encoder.layers for t in layer.weights.values()}
    if isinstance(encoder.mask, masks.TokenMask):
        stop.add(encoder.mask.tensor.op.name)
    elif isinstance(encoder.mask, masks.PairMask):
        stop |= {t.op.name for t in encoder.mask.adders}
    seen: set[str] = set()
    todo = [last.output.op]
    while todo:
        op = todo.pop()
        if op.name in seen or op.name in stop:
            continue
        seen.add(op.name)
        todo += [t.op for t in op.inputs]
    return seen
