"""The values of weights, and of what a body computes from a model's inputs.

Weights that become constants in another type are read here, and the hidden states that INT8 is
calibrated on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fastertransformer_tf import spec
from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.graphs import float_types
from fastertransformer_tf.models import encoder_graphs, int8_weights
from fastertransformer_tf.quantization import conversion, points
from fastertransformer_tf.rewriting import bodies, masks, sources, views
from fastertransformer_tf.rewriting.encoders import Encoder
from fastertransformer_tf.rewriting.replacing import Constants, Precision

_HIDDEN_ACT = {"gelu_tanh": "gelu"}


class Reader:
    """Reads values of one body of a model, whose session is open."""

    def __init__(
        self,
        view: views.View,
        tracer: sources.Tracer,
        session: Any,
        signature: sources.Signature,
    ) -> None:
        """Takes the body, and how to find what its arguments are.

        Args:
          view: The body.
          tracer: Of the model's graph.
          session: Holds that graph with its variables.
          signature: Whose inputs samples are for.
        """
        self._view = view
        self._tracer = tracer
        self._session = session
        self._names = {tensor: name for name, tensor in signature.inputs.items()}
        self._read: dict[str, np.ndarray] = {}

    def weight(self, tensor: tf.Tensor) -> np.ndarray:
        """Returns the value of a constant or variable.

        Raises:
          UserError: It is computed from some.
        """
        if tensor.name not in self._read:
            self._read[tensor.name] = self._value(tensor)
        return self._read[tensor.name]

    def _value(self, tensor: tf.Tensor) -> np.ndarray:
        constant = tf.get_static_value(tensor)
        if constant is not None:
            return np.asarray(constant)
        if not self._view.is_read(tensor.op):
            raise UserError(
                f"the weight {tensor.name} is computed ({tensor.op.type}), expected a constant or a "
                "variable where the op's weights are not float32"
            )
        if not self._view.body.name:
            return np.asarray(self._session.run(tensor.name))
        read = {n.name: n for n in self._view.body.graph_def.node}[tensor.op.name]
        argument = self._view.body.arguments.index(bodies.node_name(read.input[0]))
        variable = self._tracer.variable(self._view.body.name, argument)
        if variable is None:
            raise UserError(
                f"{self._view.body.name} is called with several variables for {tensor.name}, "
                "expected one where the op's weights are not float32"
            )
        graph = self._session.graph
        handle = graph.get_tensor_by_name(f"{variable.name}:0")
        with graph.as_default():
            dtype = bodies.dtype_of(variable)
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
        return np.asarray(self._session.run(value))

    def computed(self, tensor: tf.Tensor, samples: Mapping[str, np.ndarray]) -> np.ndarray:
        """Computes a tensor of the body from samples of the model's inputs.

        Raises:
          UserError: It depends on what is no input of the signature.
        """
        if not self._view.body.name:
            feeds = {t: samples[name] for t, name in self._names.items()}
            return np.asarray(self._session.run(tensor.name, feeds))
        given: dict[str, np.ndarray] = {}
        for read in self._needed(tensor):
            given[read.name] = self._given(read, samples)
        with self._view.session():
            return self._view.run(tensor, given)

    def _needed(self, tensor: tf.Tensor) -> list[tf.Tensor]:
        """Lists the arguments and variables that a tensor is computed from."""
        found: dict[str, tf.Tensor] = {}
        todo, seen = [tensor], set()
        while todo:
            t = todo.pop()
            if t.name in seen:
                continue
            seen.add(t.name)
            if t.op.type == "Placeholder":
                found[t.name] = t
            todo += t.op.inputs
        return list(found.values())

    def _given(self, tensor: tf.Tensor, samples: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the value of an argument or variable."""
        if self._view.is_read(tensor.op):
            return self.weight(tensor)
        body = self._view.body
        origins = self._tracer.origins(body.name, body.arguments.index(tensor.op.name))
        names = {self._names.get(name) for name in origins} - {None}
        if len(names) != 1 or tensor.dtype == tf.resource:
            raise UserError(
                f"{tensor.op.name} of {body.name} is {sorted(origins)}, expected one input of the "
                "signature"
            )
        return samples[str(names.pop())]


def real_tokens(
    reader: Reader, encoder: Encoder, samples: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """Returns which tokens of samples are real, bool [B,S]; None without a mask of tokens."""
    if not isinstance(encoder.mask, masks.TokenMask):
        return None
    return reader.computed(encoder.mask.tensor, samples).astype(np.float32) != 0


def constants(
    reader: Reader,
    encoder: Encoder,
    precision: Precision,
    samples: Mapping[str, np.ndarray],
    ranges: str | None,
) -> Constants | None:
    """Makes the weights that the op gets where they are not the graph's own.

    Args:
      reader: Of the encoder's body.
      encoder: The layers.
      precision: float32 without int8 gives None.
      samples: The model's inputs, to calibrate INT8 on.
      ranges: A checkpoint that has the ranges of INT8 and the encoder's weights: of
        ckpt_quantization, or a float one with the ranges of --do_calib; None: calibrate.

    Raises:
      UserError: A weight cannot be converted, or the checkpoint does not fit.
    """
    if not precision.has_constants:
        return None
    sizes = encoder_sizes(encoder)
    if precision.int8_mode and ranges is not None:
        by_name = _from_checkpoint(ranges, sizes)
    else:
        by_name = spec.by_google_name(_arrays(reader, encoder))
        if precision.int8_mode:
            hidden, lengths = _calibration_batch(reader, encoder, samples)
            by_name = int8_weights.quantize(by_name, sizes, hidden, lengths)
    scales = [layer[points.SCALE_LIST] for layer in by_name] if precision.int8_mode else []
    layers = spec.by_op_input(by_name)
    return Constants([_converted(layer, precision.floatx) for layer in layers], scales)


def encoder_sizes(encoder: Encoder) -> spec.EncoderSizes:
    """Returns the sizes of an encoder as the rest of the package has them."""
    first = encoder.layers[0]
    return spec.EncoderSizes(
        layers=len(encoder.layers),
        heads=first.heads,
        size=first.size,
        inner=first.inner,
        hidden_act=_HIDDEN_ACT.get(first.activation, first.activation),
        layer_norm_eps=first.epsilon,
    )


def _arrays(reader: Reader, encoder: Encoder) -> list[dict[str, np.ndarray]]:
    """Reads the weights of all layers, float32 in the op's shapes."""
    result = []
    for layer in encoder.layers:
        result.append(
            {
                w.op_input: reader.weight(layer.weights[w.op_input])
                .astype(np.float32)
                .reshape(w.sizes(layer.hidden, layer.inner))
                for w in spec.LAYER_WEIGHTS
            }
        )
    return result


def _converted(layer: Mapping[str, np.ndarray], floatx: str) -> dict[str, np.ndarray]:
    """Converts what is not int8 to a floating-point type.

    Raises:
      UserError: A number is too large for it.
    """
    dtype = float_types.float_type(floatx).as_numpy_dtype
    result = {}
    for name, value in layer.items():
        if value.dtype == np.int8:
            result[name] = value
            continue
        with np.errstate(over="ignore"):
            result[name] = value.astype(dtype)
        if not np.isfinite(result[name].astype(np.float32)).all():
            raise UserError(
                f"{name} has {np.abs(value).max():g}, expected finite numbers that {floatx} holds"
            )
    return result


def _calibration_batch(
    reader: Reader, encoder: Encoder, samples: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Computes what the encoder gets for samples: hidden states [B,S,H] and lengths [B]."""
    hidden = reader.computed(encoder.layers[0].states, samples).astype(np.float32)
    is_real = real_tokens(reader, encoder, samples)
    if is_real is None:
        if hidden.ndim != 3:
            raise UserError(
                f"the encoder's input has shape {list(hidden.shape)}, expected [B,S,H] to calibrate "
                "an encoder without a mask of tokens on"
            )
        return hidden, np.full(len(hidden), hidden.shape[1], np.int32)
    hidden = hidden.reshape(*is_real.shape, -1)
    positions = np.arange(1, is_real.shape[1] + 1)
    return hidden, np.max(is_real * positions, axis=1).astype(np.int32)


def _from_checkpoint(
    prefix: str, sizes: spec.EncoderSizes
) -> list[dict[str, np.ndarray]]:
    """Reads int8 weights and scale lists of a checkpoint, quantizing a float one by its ranges."""
    source = reading.Checkpoint(prefix)
    if points.FORMAT_VARIABLE in source.shapes:
        return list(encoder_graphs.load_weights(prefix, sizes, int8=True))
    encoder_graphs.load_weights(prefix, sizes)  # Checks that it has the encoder's sizes.
    names = [name for name in source.shapes if points.split_name(name) or name == points.FINAL_POINT]
    quantized = conversion.quantize_tensors(
        {name: np.asarray(source.load(name)) for name in names if "adam_" not in name}
    )
    layers: list[dict[str, np.ndarray]] = []
    for index in range(sizes.layers):
        wanted: Sequence[str] = [*(w.google for w in spec.LAYER_WEIGHTS), points.SCALE_LIST]
        layers.append({name: quantized[points.full_name(index, name)] for name in wanted})
    return layers
