"""A body as TensorFlow sees it: inputs, consumers and shapes of tensors, and their values.

What depends on what is asked here, and parts of the graph are run on tensors that are given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import function_pb2, graph_pb2

from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.rewriting import bodies

_tf1 = tf.compat.v1

# Pass values on as they are, in the same or another shape; the first input has them.
LAYOUT_OPS = frozenset(
    "Identity StopGradient PreventGradient Snapshot EnsureShape Reshape Transpose ExpandDims "
    "Squeeze".split()
)
# Look at the shape of their input alone.
_SHAPE_OPS = frozenset("Shape ShapeN Size Rank ZerosLike OnesLike".split())
VARIABLE_OPS = frozenset("VariableV2 Variable ReadVariableOp _ReadVariablesOp".split())
_PLACEHOLDERS = frozenset("Placeholder PlaceholderV2 PlaceholderWithDefault".split())
_RANDOM = ("Random", "StatelessRandom", "Multinomial")


class Depends(Exception):
    """A part of a graph depends on something else than what it was asked about."""


class View:
    """A body, imported into a graph of its own.

    Attributes:
      body: The body.
      graph: The graph. Reads of variables that are arguments of a function are placeholders in it.
    """

    def __init__(
        self,
        body: bodies.Body,
        library: Mapping[str, function_pb2.FunctionDef],
        variables: Mapping[str, Any],
    ) -> None:
        """Imports a body.

        Args:
          body: The body.
          library: The functions that its nodes may name.
          variables: Argument of a function that is the handle of a variable -> its shape.
        """
        self.body = body
        self._arguments = set(body.arguments)
        self._reads: set[str] = set()
        graph_def = graph_pb2.GraphDef(versions=body.graph_def.versions)
        for node in body.graph_def.node:
            copied = graph_def.node.add()
            copied.CopyFrom(node)
            copied.device = ""
            copied.attr.pop("_class", None)
            if node.op != "ReadVariableOp":
                continue
            self._reads.add(node.name)
            handle = bodies.node_name(node.input[0])
            if handle in variables:
                del copied.input[:]
                copied.op = "Placeholder"
                dtype = bodies.dtype_of(node).as_datatype_enum
                copied.attr.clear()
                copied.attr["dtype"].type = dtype
                copied.attr["shape"].shape.CopyFrom(tf.TensorShape(variables[handle]).as_proto())
        graph_def.library.function.extend(bodies.needed_functions(graph_def.node, library))
        self.graph = tf.Graph()
        with self.graph.as_default():
            _tf1.import_graph_def(graph_def, name="")
        self._static: dict[str, bool] = {}
        self._shape_only: dict[str, bool] = {}
        self._session: Any = None

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Lets `run` be called inside."""
        config = sessions.session_config()
        # Every probe is another small piece of the graph: optimizing each takes longer than it.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        with _tf1.Session(graph=self.graph, config=config) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    def run(self, tensor: tf.Tensor, feeds: Mapping[Any, np.ndarray]) -> np.ndarray:
        """Computes a tensor from others. Tensors are keys by their names."""
        return self._session.run(tensor.name, dict(feeds))

    def tensor(self, name: str) -> tf.Tensor:
        """Returns a tensor by name."""
        return self.graph.get_tensor_by_name(name)

    # ---- What a tensor is ------------------------------------------------------------------------

    def is_read(self, op: Any) -> bool:
        """Whether an op gives a variable's value."""
        return op.type in VARIABLE_OPS or op.name in self._reads

    def is_static(self, tensor: tf.Tensor) -> bool:
        """Whether constants and variables alone decide a tensor's value."""
        return self._decide(tensor, self._static, self._static_leaf)

    def _static_leaf(self, op: Any) -> bool | None:
        if op.type == "Const" or self.is_read(op):
            return True
        if op.type in _PLACEHOLDERS or is_stateful(op) or not op.inputs:
            return False
        return None

    def is_shape_only(self, tensor: tf.Tensor) -> bool:
        """Whether constants and the shapes of other tensors alone decide a tensor's value."""
        return self._decide(tensor, self._shape_only, self._shape_leaf)

    def _shape_leaf(self, op: Any) -> bool | None:
        return True if op.type in _SHAPE_OPS else self._static_leaf(op)

    @staticmethod
    def _decide(tensor: tf.Tensor, known: dict[str, bool], leaf: Any) -> bool:
        """Whether all that a tensor depends on is of a kind; by op, without recursion."""
        todo, opened = [tensor.op], set()
        while todo:
            op = todo[-1]
            decided = known.get(op.name, leaf(op))
            if decided is None:
                inputs = [t.op for t in op.inputs]
                if op.name not in opened:
                    opened.add(op.name)
                    todo += [o for o in inputs if o.name not in known and o.name not in opened]
                    continue
                # What is still unknown is part of a loop.
                decided = all(known.get(o.name, False) for o in inputs)
            known[op.name] = decided
            todo.pop()
        return known[tensor.op.name]

    def source(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the tensor whose values this one has, perhaps in another shape."""
        while not self.is_read(tensor.op) and tensor.op.type in LAYOUT_OPS | {"Cast"}:
            if tensor.op.type == "Cast" and tensor.op.inputs[0].dtype != tensor.dtype:
                break
            tensor = tensor.op.inputs[0]
        return tensor

    def scalar(self, tensor: tf.Tensor) -> float | None:
        """Returns the value of a constant of one element; None of anything else."""
        # Of a larger tensor TensorFlow would not let us replace a value that it has been asked for.
        if tensor.shape.num_elements() not in (None, 1) or not self.is_static(tensor):
            return None
        value = tf.get_static_value(tensor)
        return float(value.reshape(())) if value is not None and np.size(value) == 1 else None

    def users(self, tensor: tf.Tensor) -> list[Any]:
        """Returns the ops that use a tensor's values, not only its shape."""
        return [op for op in tensor.consumers() if op.type not in _SHAPE_OPS]

    # ---- What a part of the graph depends on -----------------------------------------------------

    def leaves(
        self, tensor: tf.Tensor, cuts: Sequence[tf.Tensor], data: tf.Tensor | None = None
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Finds what a tensor depends on besides `cuts`.

        Args:
          tensor: The tensor.
          cuts: Where to stop.
          data: That of `cuts` whose shape others get theirs from; all of them when None. A tensor
            that does not depend on it is one of those whose shape is to be given.

        Returns:
          Weights, the static tensors of several elements or of variables; and tensors of which only
          the shape is used. Both by name.

        Raises:
          Depends: On anything else, or on random numbers.
        """
        cut_names = {t.name for t in cuts}
        inside = cut_names | self._descendants(cut_names if data is None else {data.name})
        weights: dict[str, tf.Tensor] = {}
        shapes: dict[str, tf.Tensor] = {}
        seen: set[str] = set()
        todo = [tensor]
        while todo:
            t = todo.pop()
            if t.name in seen or t.name in cut_names:
                continue
            seen.add(t.name)
            op = t.op
            if self.is_static(t):
                found = self.source(t)
                if found.name in cut_names:
                    continue
                if found.dtype.is_floating and self._holds_weights(found):
                    weights[found.name] = found
                continue
            if op.type in _SHAPE_OPS and op.inputs[0].name not in inside:
                shapes[op.inputs[0].name] = op.inputs[0]
            elif op.type in _PLACEHOLDERS or not op.inputs or is_stateful(op):
                kind = "dropout or another random op" if is_random(op) else "an input"
                raise Depends(f"it depends on {op.name} ({op.type}), {kind}")
            else:
                todo += op.inputs
        return weights, shapes

    def _holds_weights(self, tensor: tf.Tensor) -> bool:
        """Whether a static tensor is made of what a model learns, not of single numbers alone."""
        todo, seen = [tensor.op], set()
        while todo:
            op = todo.pop()
            if op.name in seen:
                continue
            seen.add(op.name)
            if self.is_read(op):
                return True
            if op.type == "Const":
                output = op.outputs[0]
                if output.dtype.is_floating and (output.shape.num_elements() or 0) > 1:
                    return True
            todo += [t.op for t in op.inputs]
        return False

    def _descendants(self, cut_names: Iterable[str]) -> set[str]:
        """Names of all tensors that depend on some, these among them."""
        found = set(cut_names)
        todo = [self.tensor(name) for name in cut_names]
        while todo:
            for op in todo.pop().consumers():
                for output in op.outputs:
                    if output.name not in found:
                        found.add(output.name)
                        todo.append(output)
        return found

    def behind(self, tensor: tf.Tensor, limit: int) -> list[tf.Tensor]:
        """Returns tensors that depend on one, nearest first, up to a number of ops."""
        found: list[tf.Tensor] = []
        seen = {tensor.name}
        todo: list[tf.Tensor] = [tensor]
        for _ in range(limit):
            if not todo:
                break
            for op in self.users(todo.pop(0)):
                for output in op.outputs[:1]:
                    if output.name not in seen:
                        seen.add(output.name)
                        todo.append(output)
                        found.append(output)
        return found

    def random_before(self, op: Any, depth: int = 8) -> str | None:
        """Returns the name of a random op that an op depends on within a few steps."""
        level: Sequence[Any] = [op]
        for _ in range(depth):
            found = [o for o in level if is_random(o)]
            if found:
                return found[0].name
            level = list({t.op.name: t.op for o in level for t in o.inputs}.values())[:64]
        return None


def reason_of(error: Exception) -> str:
    """Returns the line of TensorFlow's error that tells the cause."""
    headings = ("Graph execution error", "Detected at node", "Node:", "[[")
    lines = (line.strip() for line in str(error).splitlines())
    return next((x for x in lines if x and not x.startswith(headings)), type(error).__name__)


def is_random(op: Any) -> bool:
    """Whether an op draws random numbers."""
    return op.type.startswith(_RANDOM)


def is_stateful(op: Any) -> bool:
    """Whether an op's result depends on more than its inputs."""
    return (
        op.op_def is None
        or (op.op_def.is_stateful and op.type not in VARIABLE_OPS)
        or (op.type.startswith("StatelessRandom"))
    )
