"""`fastertransformer_tf.optimize`: a model with BERT encoders in, the same with the op out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.graphs import float_types
from fastertransformer_tf.quantization import points
from fastertransformer_tf.rewriting import (
    bodies,
    encoders,
    masks,
    replacing,
    reports,
    samples,
    sources,
    values,
    verification,
    views,
)
from fastertransformer_tf.rewriting.replacing import Precision


def optimize(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    floatx: str = "float32",
    remove_padding: bool = False,
    int8_mode: int = 0,
    ranges: str | None = None,
    sample_inputs: Mapping[str, np.ndarray] | str | os.PathLike[str] | None = None,
    signature: str | None = None,
    outputs: Sequence[str] = (),
    all_functions: bool = False,
    assume_real_tokens: bool = False,
    write_report: bool = True,
    progress: encoders.Progress = encoders.silent,
) -> reports.Report:
    """Finds the BERT encoders of a model and writes the model with the op in their place.

    Encoders are found by structure, whatever their names, and each layer is run with random weights
    against the op before anything is replaced. Signatures, assets, variables and everything else
    stay. The result is run against the source before it gets its name.

    Args:
      source: A SavedModel's folder, a frozen GraphDef's file, or the prefix of a checkpoint with
        its meta graph beside it.
      destination: The path of the result, of the same kind; of a checkpoint a folder to make. It
        must not exist.
      floatx: float32, float16 or bfloat16: what the op computes in. But for float32 the encoders'
        weights become constants of the graph.
      remove_padding: Compute real tokens only where the mask is one of tokens; rows of padding come
        out as 0.
      int8_mode: 0, or 1, 2 or 3: kernels of int8 (docs/int8.md), constants of the graph.
      ranges: For int8_mode: a checkpoint with the encoder's weights and their ranges, of
        ckpt_quantization or of --do_calib. None: the largest magnitudes that the samples show.
      sample_inputs: Input name to array, or an .npz file of them: what source and result are run
        on, and INT8 is calibrated with. None: made up, token ids with padding.
      signature: The signature that the samples are for; the only one, or serving_default.
      outputs: Of a graph without signatures: the tensors that are fetched; its ends when empty.
      all_functions: Replace encoders in functions, too, that no signature runs (Keras' own of a
        SavedModel); those are proven layer by layer, but not run as a whole. float32 with padding.
      assume_real_tokens: Every sequence has at least one token that is not masked. Keras 3's
        attention gives others a context of 0, which the op does not.
      write_report: Write `<destination>.optimize.json` and, where matplotlib is installed, a bar
        chart of times, `<destination>.optimize.png`.
      progress: Called with an iterable and what is done with it; returns what to iterate over, as
        tqdm does.

    Returns:
      What was done and left, layer by layer, how close the outputs are, and the times.

    Raises:
      FileNotFoundError: There is no source.
      UserError: An argument is wrong, no encoder was found, or the result differs from the source
        by more than `verification.TOLERANCES`; nothing is written then.
    """
    float_types.float_type(floatx)
    if int8_mode not in (0, *points.QUANT_MODES.values()):
        raise UserError(f"int8_mode is {int8_mode}, expected 0, 1, 2 or 3")
    if ranges is not None and not int8_mode:
        raise UserError("ranges are of INT8, but int8_mode is 0, expected 1, 2 or 3")
    precision = Precision(floatx, remove_padding, int8_mode)
    if all_functions and (precision.has_constants or remove_padding):
        raise UserError(
            "all_functions is of float32 with padding: what no signature runs cannot be verified"
        )
    place = Path(destination)
    if os.path.lexists(place):
        raise UserError(f"destination {place} exists already, expected a new path")
    if isinstance(sample_inputs, (str, os.PathLike)):
        sample_inputs = samples.load(sample_inputs)
    model = sources.read(source, outputs)
    report = reports.Report(
        str(source), str(destination), model.kind, dataclasses.asdict(precision)
    )
    runs: list[_Run] = []
    for index, meta in enumerate(model.metas):
        changed = meta_graph_pb2.MetaGraphDef()
        changed.CopyFrom(meta)
        rewriter = _Rewriter(model, meta, changed, precision, ranges, all_functions)
        rewriter.progress, rewriter.assume_real_tokens = progress, assume_real_tokens
        runs.append(rewriter.run(sample_inputs, signature, report))
        model.metas[index] = changed
    if not report.encoders:
        reasons = [f"{left.label} ({left.softmax}): {left.reason}" for left in report.left]
        raise UserError(
            f"source {source} has no BERT encoder that the op computes: "
            + (listed(reasons) if reasons else "it has no attention at all")
        )
    with sources.staged(model, place) as result:
        for run, meta in zip(runs, result.metas, strict=True):
            _verify(run, result, meta, precision, report)
        verification.require_right(report.outputs)
    if write_report:
        reports.write(report, place)
    return report


@dataclasses.dataclass
class _Run:
    """What a graph of the source was run on, and what it answered.

    Attributes:
      model: The source, as it was read.
      meta: The graph, as it was read.
      given: Signature name to its samples.
      expected: Signature name to the source's outputs.
      real: Which tokens of them are real, of each encoder without padding.
    """

    model: sources.Model
    meta: meta_graph_pb2.MetaGraphDef
    given: dict[str, dict[str, np.ndarray]]
    expected: dict[str, dict[str, np.ndarray]]
    real: dict[str, list[np.ndarray]]


class _Rewriter:
    """Rewrites one graph of a model."""

    def __init__(
        self,
        model: sources.Model,
        meta: meta_graph_pb2.MetaGraphDef,
        changed: meta_graph_pb2.MetaGraphDef,
        precision: Precision,
        ranges: str | None,
        all_functions: bool,
    ) -> None:
        self._model = dataclasses.replace(model, metas=list(model.metas))
        self._meta = meta
        self._changed = changed
        self._precision = precision
        self._ranges = ranges
        self._all_functions = all_functions
        self.progress: encoders.Progress = encoders.silent
        self.assume_real_tokens = False
        self._tracer = sources.Tracer(meta)
        self._library = bodies.functions(meta.graph_def)

    def run(
        self,
        given: Mapping[str, np.ndarray] | None,
        signature: str | None,
        report: reports.Report,
    ) -> _Run:
        """Finds and replaces the encoders of the graph; notes all in the report."""
        signatures = self._model.signatures(self._meta)
        if self._model.kind == "SavedModel" and sources.GRAPH in signatures:
            raise UserError(
                f"source {self._model.path} has no signature, expected one that can be run: save "
                "it with signatures"
            )
        found = [
            (view, encoders.find(view, self.progress, self.assume_real_tokens), reached)
            for view, reached in self._views(signatures)
        ]
        for view, result, _ in found:
            for x in result.left:
                report.left.append(reports.Left(view.body.name, x.label, x.softmax, x.reason))
        run = _Run(self._model, self._meta, {}, {}, {})
        if not any(result.encoders for _, result, _ in found):
            return run
        with self._model.session(self._meta) as session:
            self._answer(session, run, signatures, given, signature)
            for view, result, reached in found:
                if not result.encoders:
                    continue
                readers = {}
                if self._precision.has_constants or self._precision.remove_padding:
                    for name in set(run.given) & set(reached):
                        readers[name] = values.Reader(view, self._tracer, session, signatures[name])
                for encoder in result.encoders:
                    self._replace(view, encoder, readers, run, report)
        for view, result, _ in found:
            if result.encoders:
                self._write_back(view)
        return run

    def _views(
        self, signatures: Mapping[str, sources.Signature]
    ) -> list[tuple[views.View, list[str]]]:
        """Makes the views of the outer graph and the functions that hold a softmax.

        Returns:
          Each with the signatures that run it.
        """
        graph_def = self._meta.graph_def
        result = []
        if any(node.op == "Softmax" for node in graph_def.node):
            fetched = [t for s in signatures.values() for t in s.outputs.values()]
            certain = self._model.has_certain_outputs(self._meta)
            kept = _in_collections(self._meta)
            if not certain:
                used = {bodies.node_name(i) for node in graph_def.node for i in node.input}
                kept |= {node.name for node in graph_def.node} - used
            body = bodies.outer_body(graph_def, fetched, certain, kept)
            result.append((views.View(body, self._library, {}), list(signatures)))
        reached = {name: self._tracer.reached(s.outputs) for name, s in signatures.items()}
        for name, function in self._library.items():
            by = [signature for signature, names in reached.items() if name in names]
            if not (by or self._all_functions):
                continue
            if any(node.op == "Softmax" for node in function.node_def):
                body = bodies.function_body(function, self._library)
                variables = {}
                for index, argument in enumerate(function.signature.input_arg):
                    shape = self._tracer.variable_shape(name, index)
                    if shape is not None:
                        variables[argument.name] = shape
                result.append((views.View(body, self._library, variables), by))
        return result

    def _answer(
        self,
        session: Any,
        run: _Run,
        signatures: Mapping[str, sources.Signature],
        given: Mapping[str, np.ndarray] | None,
        wanted: str | None,
    ) -> None:
        """Runs the signatures of the source on samples."""
        if wanted is not None and wanted not in signatures:
            raise UserError(f"signature is {wanted!r}, expected one of {sorted(signatures)}")
        for name, signature in signatures.items():
            if wanted is not None and name != wanted:
                continue
            if given is not None:
                if wanted is None and len(signatures) > 1 and set(given) != set(signature.inputs):
                    continue
                samples.check(given, signature, name)
                run.given[name] = dict(given)
            else:
                graph_def = self._meta.graph_def
                run.given[name] = samples.made_up(session, signature, graph_def)
            run.expected[name] = verification.run(session, signature, run.given[name])
            run.real[name] = []
        if not run.given:
            raise UserError(
                f"the samples fit none of the signatures {sorted(signatures)}, expected one's"
            )

    def _replace(
        self,
        view: views.View,
        encoder: encoders.Encoder,
        readers: Mapping[str, values.Reader],
        run: _Run,
        report: reports.Report,
    ) -> None:
        """Replaces one encoder, of which the readers are by the signatures that run it."""
        constants = None
        if self._precision.has_constants or self._precision.remove_padding:
            if not readers:
                self._leave(view, encoder, "no signature that was run uses it", report)
                return
            if self._precision.has_constants:
                name, reader = next(iter(readers.items()))
                constants = values.constants(
                    reader, encoder, self._precision, run.given[name], self._ranges
                )
        done = replacing.replace(view, encoder, self._precision, constants, self._changed.graph_def)
        if done.padding_removed:
            for name, reader in readers.items():
                real = values.real_tokens(reader, encoder, run.given[name])
                if real is not None:
                    run.real[name].append(real)
        first = encoder.layers[0]
        report.encoders.append(
            reports.EncoderDone(
                function=view.body.name,
                node=done.node,
                layers=[reports.LayerDone(x.label, x.softmax) for x in encoder.layers],
                heads=first.heads,
                size_per_head=first.size,
                inner=first.inner,
                activation=first.activation,
                layernorm_epsilon=first.epsilon,
                mask=_mask_name(encoder.mask),
                padding_removed=done.padding_removed,
                inner_outputs=[encoder.layers[i].label for i in done.inner_outputs],
            )
        )

    @staticmethod
    def _leave(
        view: views.View, encoder: encoders.Encoder, reason: str, report: reports.Report
    ) -> None:
        """Notes that an encoder is left alone."""
        for layer in encoder.layers:
            report.left.append(reports.Left(view.body.name, layer.label, layer.softmax, reason))

    def _write_back(self, view: views.View) -> None:
        """Puts the nodes of a changed body into the changed graph."""
        graph_def = self._changed.graph_def
        if not view.body.name:
            del graph_def.node[:]
            graph_def.node.extend(view.body.graph_def.node)
            return
        library = bodies.functions(graph_def)
        bodies.write_back(view.body, library[view.body.name], library)


def _in_collections(meta: meta_graph_pb2.MetaGraphDef) -> set[str]:
    """Names the nodes that the collections of a graph name, and the reads of its variables."""
    names = {node.name for node in meta.graph_def.node}
    variables = {node.name for node in meta.graph_def.node if node.op in views.VARIABLE_OPS}
    found = {
        bodies.node_name(name)
        for collection in meta.collection_def.values()
        for name in collection.node_list.value
    }
    found |= {
        node.name
        for node in meta.graph_def.node
        if node.op == "Identity" and bodies.node_name(node.input[0]) in variables
    }
    return found & names


def _mask_name(mask: masks.Mask) -> str:
    """Says in a few words what a mask is."""
    if isinstance(mask, masks.TokenMask):
        return f"of tokens, from {mask.tensor.name}"
    if isinstance(mask, masks.PairMask):
        return "of pairs of tokens, from " + ", ".join(t.name for t in mask.adders)
    return "none"


def _verify(
    run: _Run,
    result: sources.Model,
    meta: meta_graph_pb2.MetaGraphDef,
    precision: Precision,
    report: reports.Report,
) -> None:
    """Runs the result as the source was run; notes differences and times in the report."""
    if not run.given:
        return
    before, after = run.model.signatures(run.meta), result.signatures(meta)
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(result.session(meta))
        for name, given in run.given.items():
            actual = verification.run(new, after[name], given)
            report.outputs += verification.compare(
                name, run.expected[name], actual, precision, run.real[name]
            )
        if not all(output.is_right for output in report.outputs):
            return
        old = stack.enter_context(run.model.session(run.meta))
        for name, given in run.given.items():
            times = verification.milliseconds([(old, before[name]), (new, after[name])], given)
            shapes = {key: list(value.shape) for key, value in given.items()}
            report.times.append(reports.Times(name, shapes, *times))
