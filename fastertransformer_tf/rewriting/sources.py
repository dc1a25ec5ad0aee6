"""Reads the models that can be rewritten, runs them, and writes what became of them.

A SavedModel of TensorFlow 1 or 2, a frozen GraphDef (.pb), or a checkpoint with a meta graph
(PREFIX.meta). Each is a MetaGraphDef here, which a session of TensorFlow 1 runs: it takes functions
and resource variables too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import message
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic, paths
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.rewriting import bodies

_tf1 = tf.compat.v1
_SAVED_MODEL = "saved_model.pb"
# Says what the graph was that it was written with.
_FINGERPRINT = "fingerprint.pb"
_META = ".meta"
# What protocol buffers can hold, with room for the rest of a file.
_MOST_BYTES = 2**31 - 2**20
GRAPH = "graph"
# What writes, or reads a file; and what has no result.
_EFFECTS = frozenset("SaveV2 SaveSlices RestoreV2 MergeV2Checkpoints WriteFile".split())
_WITHOUT_RESULT = frozenset("NoOp Assert Print VarIsInitializedOp".split())


@dataclasses.dataclass
class Signature:
    """One way to run a model.

    Attributes:
      inputs: Name to the TensorInfo's tensor, `node:0`.
      outputs: Likewise.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclasses.dataclass
class Model:
    """A model as it is read, or as it is to be written.

    Attributes:
      path: What was read.
      kind: "SavedModel", "GraphDef" or "checkpoint".
      metas: Its graphs, of a SavedModel perhaps several.
      saved_model: The whole file of a SavedModel, whose graphs are `metas`.
      outputs: Names of tensors that the user wants of a graph without signatures.
    """

    path: Path
    kind: str
    metas: list[meta_graph_pb2.MetaGraphDef]
    saved_model: saved_model_pb2.SavedModel | None = None
    outputs: tuple[str, ...] = ()

    def signatures(self, meta: meta_graph_pb2.MetaGraphDef) -> dict[str, Signature]:
        """Returns the ways to run a graph; `graph` is that of one without signatures."""
        found = {}
        for key, signature in meta.signature_def.items():
            if not signature.outputs or key.startswith("__saved_model"):
                continue
            found[key] = Signature(
                {name: info.name for name, info in signature.inputs.items() if info.name},
                {name: info.name for name, info in signature.outputs.items() if info.name},
            )
        if found:
            return found
        nodes = meta.graph_def.node
        inputs = {n.name: f"{n.name}:0" for n in nodes if n.op in ("Placeholder", "PlaceholderV2")}
        outputs = {name: bodies.tensor_name(name) for name in self.outputs or _ends(nodes)}
        return {GRAPH: Signature(inputs, outputs)}

    def has_certain_outputs(self, meta: meta_graph_pb2.MetaGraphDef) -> bool:
        """Whether it is known what is fetched from a graph."""
        return bool(self.outputs) or GRAPH not in self.signatures(meta)

    @contextlib.contextmanager
    def session(self, meta: meta_graph_pb2.MetaGraphDef) -> Iterator[Any]:
        """Gives a session that holds a graph of the model with its variables."""
        if self.kind == "SavedModel":
            with _saved_model_session(self.path, meta) as session:
                yield session
            return
        with tf.Graph().as_default(), _tf1.Session(config=sessions.session_config()) as session:
            if self.kind == "GraphDef":
                _tf1.import_graph_def(meta.graph_def, name="")
            else:
                saver = _tf1.train.import_meta_graph(meta, clear_devices=True)
                if saver is None:
                    raise UserError(f"{self.path}{_META} has no saver, expected one that restores")
                saver.restore(session, str(self.path))
            yield session


@contextlib.contextmanager
def _saved_model_session(path: Path, meta: meta_graph_pb2.MetaGraphDef) -> Iterator[Any]:
    """Gives a session with a SavedModel; see `Model.session`."""
    tags = list(meta.meta_info_def.tags)
    with contextlib.ExitStack() as stack:
        shared = _shared_names(meta)
        if shared:
            path = stack.enter_context(_with_own_names(path, meta, shared))
        stack.enter_context(tf.Graph().as_default())
        session = stack.enter_context(_tf1.Session(config=sessions.session_config()))
        _tf1.saved_model.load(session, tags, str(path))
        yield session


def _shared_names(meta: meta_graph_pb2.MetaGraphDef) -> list[bytes]:
    """Lists the names that several variables have, as those of Keras 3 may.

    TensorFlow 2 tells them apart; in a session they would be one. Several handles of one variable
    have its name too, but only one of them is restored.

    Raises:
      UserError: Variables of one name have several handles: which is whose is not known.
    """
    nodes = {node.name: node for node in meta.graph_def.node}
    restore = nodes.get(meta.saver_def.restore_op_name)
    restored = {bodies.node_name(name) for name in restore.input} if restore is not None else set()
    handles: dict[bytes, list[str]] = {}
    for node in meta.graph_def.node:
        if node.op == "VarHandleOp":
            handles.setdefault(node.attr["shared_name"].s, []).append(node.name)
    found = []
    for name, owners in handles.items():
        count = len(restored & set(owners))
        if count > 1 and count < len(owners):
            raise UserError(
                f"{count} variables have the name {name.decode()} and {len(owners)} handles in the "
                "SavedModel, expected variables with names of their own: give the layers of the "
                "model different names and save it again"
            )
        if count > 1:
            found.append(name)
    return found


@contextlib.contextmanager
def _with_own_names(
    path: Path, meta: meta_graph_pb2.MetaGraphDef, shared: Sequence[bytes]
) -> Iterator[Path]:
    """Gives a SavedModel for a session, whose variables each have a name of their own."""
    changed = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    copied = changed.meta_graphs.add()
    copied.CopyFrom(meta)
    for node in copied.graph_def.node:
        if node.op == "VarHandleOp" and node.attr["shared_name"].s in shared:
            node.attr["shared_name"].s = node.name.encode()
    with tempfile.TemporaryDirectory() as folder:
        for entry in path.iterdir():
            if entry.name not in (_SAVED_MODEL, _FINGERPRINT):
                (Path(folder) / entry.name).symlink_to(entry.resolve())
        (Path(folder) / _SAVED_MODEL).write_bytes(_serialized(changed))
        yield Path(folder)


def _ends(nodes: Sequence[Any]) -> list[str]:
    """Names the nodes that no other node uses: what a graph without signatures is taken to be for.

    Those without inputs, and those that run what saves, restores or assigns, are none.
    """
    by_name = {node.name: node for node in nodes}
    used = {bodies.node_name(name) for node in nodes for name in node.input}

    def has_effect(name: str) -> bool:
        todo, seen = [name], set[str]()
        while todo:
            current = todo.pop()
            if current in seen or current not in by_name:
                continue
            seen.add(current)
            node = by_name[current]
            if node.op in _EFFECTS or "Assign" in node.op:
                return True
            todo += [bodies.node_name(i) for i in node.input]
        return False

    return [
        node.name
        for node in nodes
        if node.name not in used
        and node.op not in _WITHOUT_RESULT
        and any(not name.startswith("^") for name in node.input)
        and not has_effect(node.name)
    ]


def read(source: str | os.PathLike[str], outputs: Sequence[str] = ()) -> Model:
    """Reads a model.

    Args:
      source: The folder of a SavedModel, a GraphDef's file, or a checkpoint's prefix.
      outputs: Tensors that are fetched from a GraphDef or meta graph; all ends of it when empty.

    Raises:
      FileNotFoundError: There is nothing.
      UserError: It is none of these, or cannot be read.
    """
    paths.refuse_url(str(source), "source")
    path = Path(source)
    if path.is_dir():
        model = _read_saved_model(path)
    elif Path(f"{path}{_META}").is_file():
        meta = _parse(Path(f"{path}{_META}"), meta_graph_pb2.MetaGraphDef())
        model = Model(path, "checkpoint", [meta])
    elif path.is_file():
        meta = meta_graph_pb2.MetaGraphDef(graph_def=_parse(path, graph_pb2.GraphDef()))
        model = Model(path, "GraphDef", [meta])
    else:
        raise FileNotFoundError(
            f"source {path} not found, expected a SavedModel's folder, a GraphDef's file or a "
            "checkpoint's prefix with .meta beside it"
        )
    model.outputs = tuple(outputs)
    for meta in model.metas:
        _check_outputs(model, meta)
    return model


def _read_saved_model(path: Path) -> Model:
    """Reads a SavedModel.

    Raises:
      UserError: The folder is none.
    """
    file = path / _SAVED_MODEL
    if not file.is_file():
        raise UserError(f"source {path} has no {_SAVED_MODEL}, expected a SavedModel's folder")
    saved_model = _parse(file, saved_model_pb2.SavedModel())
    if not saved_model.meta_graphs:
        raise UserError(f"{file} has no graph, expected a SavedModel")
    return Model(path, "SavedModel", list(saved_model.meta_graphs), saved_model)


def _parse(path: Path, empty: Any) -> Any:
    """Reads a protocol buffer.

    Raises:
      UserError: It is another kind of file.
    """
    kind = type(empty).__name__
    try:
        empty.ParseFromString(path.read_bytes())
    except message.DecodeError as error:
        raise UserError(f"{path} is no {kind}: {error}") from error
    graph = getattr(empty, "graph_def", empty)
    if isinstance(graph, graph_pb2.GraphDef) and not graph.node:
        raise UserError(f"{path} has no nodes, expected a {kind}")
    return empty


def _check_outputs(model: Model, meta: meta_graph_pb2.MetaGraphDef) -> None:
    """Refuses outputs that the graph does not have.

    Raises:
      UserError: Naming the first.
    """
    names = {node.name for node in meta.graph_def.node}
    for name in model.outputs:
        if bodies.node_name(name) not in names:
            raise UserError(f"outputs has {name}, expected a node of {model.path}")


# ---- Writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def staged(model: Model, destination: Path) -> Iterator[Model]:
    """Writes a changed model beside its destination, and moves it there when the block ends well.

    Args:
      model: Read by `read`, its graphs changed.
      destination: As the source: a folder, a file, or for a checkpoint a folder to make.

    Yields:
      The model where it is written to, to run it.

    Raises:
      UserError: `destination` exists, or the model is too large for a protocol buffer.
    """
    if os.path.lexists(destination):
        raise UserError(f"destination {destination} exists already, expected a new path")
    with atomic.atomic_path(destination) as place:
        yield _write(model, place)


def _write(model: Model, place: Path) -> Model:
    """Writes a model; see `staged`."""
    if model.kind == "SavedModel":
        changed = saved_model_pb2.SavedModel()
        assert model.saved_model is not None
        changed.CopyFrom(model.saved_model)
        del changed.meta_graphs[:]
        changed.meta_graphs.extend(model.metas)
        ignored = shutil.ignore_patterns(_SAVED_MODEL, _FINGERPRINT)
        data = _serialized(changed)
        shutil.copytree(model.path, place, ignore=ignored)
        (place / _SAVED_MODEL).write_bytes(data)
        return Model(place, model.kind, model.metas, changed, model.outputs)
    if model.kind == "GraphDef":
        place.write_bytes(_serialized(model.metas[0].graph_def))
        return Model(place, model.kind, model.metas, None, model.outputs)
    place.mkdir()
    data = _serialized(model.metas[0])
    for file in sorted(model.path.parent.glob(f"{model.path.name}.*")):
        if file.name.removeprefix(model.path.name).startswith((".data-", ".index")):
            shutil.copy2(file, place / file.name)
    (place / f"{model.path.name}{_META}").write_bytes(data)
    return Model(place / model.path.name, model.kind, model.metas, None, model.outputs)


def _serialized(proto: Any) -> bytes:
    """Returns a protocol buffer's bytes.

    Raises:
      UserError: They are too many.
    """
    check_size(proto.ByteSize())
    return bytes(proto.SerializeToString())


def check_size(size: int) -> None:
    """Refuses more bytes than a protocol buffer holds.

    Raises:
      UserError: It is too large.
    """
    if size > _MOST_BYTES:
        raise UserError(
            f"the optimized graph takes {size / 2**30:.2f} GiB, expected less than 2 GiB, the most "
            "a protocol buffer holds: with floatx=float32 and int8_mode=0 the weights stay in "
            "variables of a SavedModel"
        )


# ---- Where a function's arguments come from ------------------------------------------------------


class Tracer:
    """Follows arguments of functions to the tensors of the outer graph that they have as values."""

    def __init__(self, meta: meta_graph_pb2.MetaGraphDef) -> None:
        """Takes a graph with its functions."""
        library = bodies.functions(meta.graph_def)
        self._outer = {node.name: node for node in meta.graph_def.node}
        # Function -> (function with the call, or "", and the inputs there).
        self._calls: dict[str, list[tuple[str, list[str]]]] = {}
        self._library = library
        scopes = [("", meta.graph_def.node)]
        scopes += [(name, f.node_def) for name, f in library.items()]
        for scope, nodes in scopes:
            for node in nodes:
                if node.op in bodies.CALLS:
                    called = node.attr[bodies.CALLS[node.op]].func.name
                    inputs = [name for name in node.input if not name.startswith("^")]
                    self._calls.setdefault(called, []).append((scope, inputs))

    def reached(self, outputs: Mapping[str, str] | Sequence[str]) -> set[str]:
        """Names the functions that are run to compute tensors of the outer graph."""
        names = outputs.values() if isinstance(outputs, Mapping) else outputs
        todo, seen, found = [bodies.node_name(name) for name in names], set(), set()
        while todo:
            name = todo.pop()
            if name in seen or name not in self._outer:
                continue
            seen.add(name)
            node = self._outer[name]
            todo += [bodies.node_name(i) for i in node.input]
            found |= {f.signature.name for f in bodies.needed_functions([node], self._library)}
        return found

    def origins(self, function: str, argument: int) -> set[str]:
        """Names the tensors of the outer graph that an argument of a function has as its value."""
        found: set[str] = set()
        todo, seen = [(function, argument)], set()
        while todo:
            key = todo.pop()
            if key in seen:
                continue
            seen.add(key)
            for scope, inputs in self._calls.get(key[0], []):
                name = inputs[key[1]]
                if not scope:
                    found.add(bodies.tensor_name(name))
                    continue
                arguments = [a.name for a in self._library[scope].signature.input_arg]
                if name in arguments:
                    todo.append((scope, arguments.index(name)))
                else:
                    found.add("")  # Computed in the function.
        return found

    def variable(self, function: str, argument: int) -> Any | None:
        """Returns the node of the one variable that an argument is the handle of, or None."""
        nodes = {}
        for name in self.origins(function, argument):
            node = self._outer.get(bodies.node_name(name))
            if node is None or node.op != "VarHandleOp":
                return None
            nodes[node.name] = node
        return next(iter(nodes.values())) if len(nodes) == 1 else None

    def variable_shape(self, function: str, argument: int) -> Any | None:
        """Returns the shape of the variables that an argument is the handle of, if it is one."""
        shapes = set()
        for name in self.origins(function, argument):
            node = self._outer.get(bodies.node_name(name))
            if node is None or node.op != "VarHandleOp":
                return None
            shapes.add(tuple(d.size for d in node.attr["shape"].shape.dim))
        return list(shapes.pop()) if len(shapes) == 1 else None
