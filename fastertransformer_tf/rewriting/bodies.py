"""One view of a graph, whether it is the outer one of a model or the body of a function.

A function's nodes name their inputs `node:output_argument:index`, those of a GraphDef `node:index`.
Here both are GraphDefs, so that what is found and changed in one is found and changed in the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import function_pb2, graph_pb2, node_def_pb2, op_def_pb2
from tensorflow.python.framework import op_def_registry

from fastertransformer_tf.errors import UserError

# What runs another function on its inputs, with the attribute that names it.
CALLS = {"PartitionedCall": "f", "StatefulPartitionedCall": "f"}


@dataclasses.dataclass
class Body:
    """A graph's nodes.

    Attributes:
      name: Of the function; empty for the outer graph.
      graph_def: The nodes, inputs named as in a GraphDef; arguments of a function are placeholders.
      arguments: Names of the placeholders that stand for a function's arguments, in order.
      results: Tensors that are used from outside: what a function returns, what signatures fetch.
      certain: `results` are all that is used from outside; false where they are a guess.
      kept: Names of nodes that stay whether they are used or not, those of collections.
    """

    name: str
    graph_def: graph_pb2.GraphDef
    arguments: list[str]
    results: list[str]
    certain: bool = True
    kept: frozenset[str] = frozenset()


def tensor_name(name: str) -> str:
    """Returns `node:index` of an input that may leave out an index of 0."""
    return name if ":" in name else f"{name}:0"


def node_name(name: str) -> str:
    """Returns the node of an input, which may be a control input."""
    return name.lstrip("^").partition(":")[0]


def functions(graph_def: graph_pb2.GraphDef) -> dict[str, function_pb2.FunctionDef]:
    """Returns the functions of a graph's library by name."""
    return {f.signature.name: f for f in graph_def.library.function}


def _op_def(op: str, library: Mapping[str, function_pb2.FunctionDef]) -> op_def_pb2.OpDef:
    """Finds the definition of an op, which may be a function.

    Raises:
      UserError: This TensorFlow does not have it.
    """
    if op in library:
        return library[op].signature
    found = op_def_registry.get(op)
    if found is None:
        raise UserError(
            f"the graph has an op {op!r}, which is not in this TensorFlow; expected a graph that "
            "loads here (load the library that has the op first)"
        )
    return found


def _output_names(
    node: node_def_pb2.NodeDef, library: Mapping[str, function_pb2.FunctionDef]
) -> Iterator[str]:
    """Yields the name of each output of a function's node, in order."""
    for argument in _op_def(node.op, library).output_arg:
        if argument.number_attr:
            count = node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            count = len(node.attr[argument.type_list_attr].list.type)
        else:
            count = 1
        for index in range(count):
            yield f"{node.name}:{argument.name}:{index}"


def outer_body(
    graph_def: graph_pb2.GraphDef,
    results: Iterable[str],
    certain: bool = True,
    kept: Iterable[str] = (),
) -> Body:
    """Makes the view of an outer graph, whose nodes it shares no memory with.

    Args:
      graph_def: The graph; functions are left out.
      results: Tensors that are used from outside.
      certain: They are all that is.
      kept: Nodes that stay in any case.
    """
    nodes = graph_pb2.GraphDef(node=graph_def.node, versions=graph_def.versions)
    fetched = sorted({tensor_name(name) for name in results})
    return Body("", nodes, [], fetched, certain, frozenset(kept))


def function_body(
    function: function_pb2.FunctionDef, library: Mapping[str, function_pb2.FunctionDef]
) -> Body:
    """Makes the view of a function's body.

    Args:
      function: The function.
      library: The functions that its nodes may name.

    Raises:
      UserError: An op of it is unknown.
    """
    graph_def = graph_pb2.GraphDef()
    flat: dict[str, str] = {}
    for index, argument in enumerate(function.signature.input_arg):
        node = graph_def.node.add(name=argument.name, op="Placeholder")
        node.attr["dtype"].type = argument.type
        shape = function.arg_attr[index].attr.get("_output_shapes")
        if shape is not None and len(shape.list.shape) == 1:
            node.attr["shape"].shape.CopyFrom(shape.list.shape[0])
        else:
            node.attr["shape"].shape.unknown_rank = True
        flat[argument.name] = f"{argument.name}:0"
    for node in function.node_def:
        for index, name in enumerate(_output_names(node, library)):
            flat[name] = f"{node.name}:{index}"
    for node in function.node_def:
        copied = graph_def.node.add()
        copied.CopyFrom(node)
        for index, name in enumerate(copied.input):
            if not name.startswith("^"):
                copied.input[index] = flat[name]
    return Body(
        function.signature.name,
        graph_def,
        [argument.name for argument in function.signature.input_arg],
        [flat[name] for name in function.ret.values()],
    )


def write_back(
    body: Body,
    function: function_pb2.FunctionDef,
    library: Mapping[str, function_pb2.FunctionDef],
) -> None:
    """Puts the nodes of a changed body back into its function.

    Args:
      body: The changed body.
      function: Changed here.
      library: The functions that its nodes may name.
    """
    nested = {f"{argument}:0": argument for argument in body.arguments}
    flat = {argument: f"{argument}:0" for argument in body.arguments}
    arguments = set(body.arguments)
    nodes = [node for node in body.graph_def.node if node.name not in arguments]
    for node in function.node_def:  # The names that its results have now.
        for index, name in enumerate(_output_names(node, library)):
            flat[name] = f"{node.name}:{index}"
    for node in nodes:
        for index, name in enumerate(_output_names(node, library)):
            nested[f"{node.name}:{index}"] = name
    for key, name in function.ret.items():
        function.ret[key] = nested[flat[name]]
    del function.node_def[:]
    for node in nodes:
        copied = function.node_def.add()
        copied.CopyFrom(node)
        for index, name in enumerate(copied.input):
            if not name.startswith("^"):
                copied.input[index] = nested[tensor_name(name)]


def needed_functions(
    nodes: Iterable[node_def_pb2.NodeDef], library: Mapping[str, function_pb2.FunctionDef]
) -> list[function_pb2.FunctionDef]:
    """Returns the functions that nodes name, and those that these name."""
    found: dict[str, function_pb2.FunctionDef] = {}
    todo = [name for node in nodes for name in function_names(node)]
    while todo:
        name = todo.pop()
        if name in library and name not in found:
            found[name] = library[name]
            todo += [n for node in library[name].node_def for n in function_names(node)]
    return list(found.values())


def function_names(node: node_def_pb2.NodeDef) -> Iterator[str]:
    """Yields the functions that a node names."""
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        elif value.HasField("list"):
            yield from (function.name for function in value.list.func)


def dtype_of(node: node_def_pb2.NodeDef, attribute: str = "dtype") -> Any:
    """Returns an attribute of a node that is a type."""
    return tf.as_dtype(node.attr[attribute].type)
