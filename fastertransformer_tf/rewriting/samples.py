"""Inputs to run a model on: given by the user, or made up by the names and types of the inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.rewriting import bodies, sources, views

# What made-up samples have where the graph does not say.
_BATCH = 8
_LENGTHS = (128, 32, 8)
_FEW_IDS = 100


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads samples from an .npz file: an array for each input, by the input's name.

    Raises:
      FileNotFoundError: There is no such file.
      UserError: It is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, EOFError) as error:
        raise UserError(f"samples {path} is no .npz file of arrays: {error}") from error


def check(given: Mapping[str, np.ndarray], signature: sources.Signature, name: str) -> None:
    """Refuses samples that are not of a signature.

    Raises:
      UserError: Naming what is missing or unknown.
    """
    if set(given) != set(signature.inputs):
        raise UserError(
            f"samples have {sorted(given)}, expected the inputs of signature {name}: "
            f"{sorted(signature.inputs)}"
        )


def made_up(
    session: Any, signature: sources.Signature, graph_def: graph_pb2.GraphDef, seed: int = 3
) -> dict[str, np.ndarray]:
    """Makes inputs for a signature, with which it runs: token ids, segments and masks with padding.

    Args:
      session: Holds the model.
      signature: Whose inputs.
      graph_def: The model's graph, to find the size of its vocabulary.
      seed: Of the random numbers.

    Raises:
      UserError: An input is of another kind, or the model does not run with any of them.
    """
    failure: Exception = ValueError()
    for length in _LENGTHS:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, length + 1, _BATCH)
        lengths[0] = length
        result = {
            name: _input(session, name, tensor, length, lengths, _vocabulary(graph_def), rng)
            for name, tensor in sorted(signature.inputs.items())
        }
        feeds = {signature.inputs[name]: value for name, value in result.items()}
        try:
            session.run(list(signature.outputs.values()), feeds)
        except (tf.errors.OpError, ValueError) as error:
            failure = error
        else:
            return result
    reason = views.reason_of(failure)
    raise UserError(
        f"the source does not run with inputs made up for it, give some with --samples: {reason}"
    )


def _input(
    session: Any,
    name: str,
    tensor_name: str,
    length: int,
    lengths: np.ndarray,
    vocabulary: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Makes one input."""
    tensor = session.graph.get_tensor_by_name(tensor_name)
    shape, dtype = tensor.shape, tensor.dtype.as_numpy_dtype
    if shape.rank not in (1, 2) or not (tensor.dtype.is_integer or tensor.dtype.is_floating):
        raise UserError(
            f"the input {name} is {tensor.dtype.name} of shape {shape}, expected token ids, "
            "segments or masks [B,S]: give inputs with --samples"
        )
    batch = shape[0] or _BATCH
    lengths = np.resize(lengths, batch)
    if shape.rank == 1:
        return (np.minimum(lengths, length) if "length" in name else np.zeros(batch)).astype(dtype)
    length = shape[1] or length
    is_real = np.arange(length) < np.minimum(lengths, length)[:, np.newaxis]
    lower = name.lower()
    if "mask" in lower and "masked_lm" not in lower:
        return is_real.astype(dtype)
    if "segment" in lower or "type" in lower:
        return (is_real & (np.arange(length) >= length // 3)).astype(dtype)
    if "position" in lower:
        return np.broadcast_to(np.arange(length), [batch, length]).astype(dtype)
    if tensor.dtype.is_floating:
        return rng.random([batch, length]).astype(dtype)
    return (rng.integers(1, max(2, vocabulary), [batch, length]) * is_real).astype(dtype)


def _vocabulary(graph_def: graph_pb2.GraphDef) -> int:
    """Returns how many rows the largest table has that a graph looks rows up in."""
    tracer = sources.Tracer(meta_graph_pb2.MetaGraphDef(graph_def=graph_def))
    rows: list[int] = []
    scopes: list[tuple[str, list[str], Any]] = [("", [], graph_def.node)]
    for function in graph_def.library.function:
        arguments = [a.name for a in function.signature.input_arg]
        scopes.append((function.signature.name, arguments, function.node_def))
    for name, arguments, node_defs in scopes:
        nodes = {node.name: node for node in node_defs}
        for node in _gathers(node_defs):
            end = _end(nodes, node.input[0])
            shape = _shape(nodes[end]) if end in nodes else None
            if end in arguments:
                shape = tracer.variable_shape(name, arguments.index(end))
            if shape is not None and len(shape) == 2:
                rows.append(shape[0])
    return max(rows, default=_FEW_IDS)


def _gathers(nodes: Iterable[Any]) -> list[Any]:
    """The nodes that look rows up."""
    return [node for node in nodes if node.op in ("Gather", "GatherV2", "ResourceGather")]


def _end(nodes: Mapping[str, Any], name: str) -> str:
    """Follows reads and identities of a table to where it is from."""
    name = bodies.node_name(name)
    while name in nodes and nodes[name].op in ("Identity", "ReadVariableOp", "Cast"):
        name = bodies.node_name(nodes[name].input[0])
    return name


def _shape(node: Any) -> list[int] | None:
    """Returns the shape of a constant or variable."""
    if node.op == "Const":
        dims = node.attr["value"].tensor.tensor_shape.dim
    elif node.op in ("VarHandleOp", "VariableV2"):
        dims = node.attr["shape"].shape.dim
    else:
        return None
    return [dim.size for dim in dims]
