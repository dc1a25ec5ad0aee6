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
from fastertransformer_tf.models import encoder_weights, int8_weights
from fastertransformer_tf.quantization import conversion, fold_shift, points
from fastertransformer_tf.rewriting import bodies, masks, sources, views
from fastertransformer_tf.rewriting.encoders import Encoder
from fastertransformer_tf.rewriting.replacing import Constants, Precision

_HIDDEN_ACT = {"gelu_tanh": "gelu"}


class Reader:
    """Reads values of one body of a model, whose session is open.

    A function's body is imported into the model's graph, its arguments being the tensors that the
    function is called with. To be made before the body is changed.
    """

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
        self._session = session
        self._signature = signature
        self._prefix = ""
        self._read: dict[str, np.ndarray] = {}
        body = view.body
        if not body.name:
            return
        inputs = set(signature.inputs.values())
        given = {}
        for index, argument in enumerate(body.arguments):
            origins = tracer.origins(body.name, index)
            if len(origins) > 1:
                origins &= inputs
            if len(origins) == 1 and "" not in origins:
                given[f"{argument}:0"] = session.graph.get_tensor_by_name(origins.pop())
        used = {bodies.tensor_name(i) for node in body.graph_def.node for i in node.input}
        given = {name: tensor for name, tensor in given.items() if name in used}
        with session.graph.as_default():
            name = session.graph.unique_name("ft_values", mark_as_used=False)
            tf.compat.v1.import_graph_def(body.graph_def, input_map=given, name=name)
        self._given = given
        self._prefix = f"{name}/"

    def weight(self, tensor: tf.Tensor) -> np.ndarray:
        """Returns the value of a constant or variable.

        Raises:
          UserError: It is computed from some, or not the same in all calls of the function.
        """
        if tensor.name in self._read:
            return self._read[tensor.name]
        if tensor.op.type != "Const" and not self._view.is_read(tensor.op):
            raise UserError(
                f"the weight {tensor.name} is computed ({tensor.op.type}), expected a constant or "
                "variable where the op's weights are not float32"
            )
        self._read[tensor.name] = self._run(tensor, {})
        return self._read[tensor.name]

    def computed(self, tensor: tf.Tensor, samples: Mapping[str, np.ndarray]) -> np.ndarray:
        """Computes a tensor of the body from samples of the signature's inputs.

        Raises:
          UserError: It depends on what is no input of the signature.
        """
        return self._run(tensor, {self._signature.inputs[n]: v for n, v in samples.items()})

    def _run(self, tensor: tf.Tensor, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        name = self._given.get(tensor.name) if self._prefix else None
        try:
            fetched = f"{self._prefix}{tensor.name}" if name is None else name
            return np.asarray(self._session.run(fetched, dict(feeds)))
        except tf.errors.InvalidArgumentError as error:
            raise UserError(
                f"{tensor.name} of {self._view.body.name or 'the graph'} cannot be computed from "
                f"the inputs {sorted(self._signature.inputs)}: {views.reason_of(error)}"
            ) from error


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
    by_name = spec.by_google_name(_arrays(reader, encoder))
    shifts: list[np.ndarray] = []
    if precision.int8_mode and ranges is not None:
        own, by_name = by_name, _from_checkpoint(ranges, sizes)
        shifts = _shifts(own, by_name)
    elif precision.int8_mode:
        hidden, lengths = _calibration_batch(reader, encoder, samples)
        by_name = int8_weights.quantize(by_name, sizes, hidden, lengths)
    scales = [layer[points.SCALE_LIST] for layer in by_name] if precision.int8_mode else []
    layers = [_converted(layer, precision.floatx) for layer in spec.by_op_input(by_name)]
    sources.check_size(sum(value.nbytes for layer in layers for value in layer.values()))
    return Constants(layers, scales, shifts)


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


def _shifts(
    own: Sequence[Mapping[str, np.ndarray]], calibrated: Sequence[Mapping[str, np.ndarray]]
) -> list[np.ndarray]:
    """Finds how a calibration moved the inputs of layers, float64 [H] each, of their weights.

    Empty where a layer's weights did not change by that alone: a model that was trained further
    does not have this one's embeddings either, which the verification shows.
    """
    found = [
        fold_shift.find_input_shift(before, after)
        for before, after in zip(own, calibrated, strict=True)
    ]
    return [z for z in found if z is not None] if all(z is not None for z in found) else []


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
                f"the encoder's input has shape {list(hidden.shape)}, expected [B,S,H] to "
                "calibrate an encoder without a mask of tokens on"
            )
        return hidden, np.full(len(hidden), hidden.shape[1], np.int32)
    hidden = hidden.reshape(*is_real.shape, -1)
    positions = np.arange(1, is_real.shape[1] + 1)
    return hidden, np.max(is_real * positions, axis=1).astype(np.int32)


def _from_checkpoint(prefix: str, sizes: spec.EncoderSizes) -> list[dict[str, np.ndarray]]:
    """Reads int8 weights and scale lists of a checkpoint, quantizing a float one by its ranges."""
    source = reading.Checkpoint(prefix)
    if points.FORMAT_VARIABLE in source.shapes:
        return list(encoder_weights.load_weights(prefix, sizes, int8=True))
    encoder_weights.load_weights(prefix, sizes)  # Checks that it has the encoder's sizes.
    names = [
        name for name in source.shapes if points.split_name(name) or name == points.FINAL_POINT
    ]
    quantized = conversion.quantize_tensors(
        {name: np.asarray(source.load(name)) for name in names if "adam_" not in name}
    )
    layers: list[dict[str, np.ndarray]] = []
    for index in range(sizes.layers):
        wanted: Sequence[str] = [*(w.google for w in spec.LAYER_WEIGHTS), points.SCALE_LIST]
        layers.append({name: quantized[points.full_name(index, name)] for name in wanted})
    return layers
