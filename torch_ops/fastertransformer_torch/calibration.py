"""Calibrates the ranges of int8 for a Hugging Face BERT, on batches of its task's data."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tqdm
from torch import nn
from transformers.models.bert import modeling_bert

from fastertransformer_tf import spec
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import hf_conversion
from fastertransformer_tf.quantization import (
    calibrating,
    histograms,
    integers,
    points,
    scale_list,
    torch_names,
)
from fastertransformer_torch import ops, point_encoder

# What BertModel.forward takes, of which calibration needs the first.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def calibrate(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]],
    options: calibrating.CalibrationOptions | None = None,
) -> dict[str, torch.Tensor]:
    """Chooses the ranges of activations and weights that int8 rounds with.

    The model stays a float one and answers as before, but with `options.fold_shift` its biases
    change: the channels of activations are centred, which changes no result.

    Args:
      model: Any float module with one of transformers' BertModel in it, which is not optimized yet.
      batches: What the model is given: input_ids, and, where there are any, attention_mask, 1 for
        real tokens and 0 for padding, and token_type_ids; integers [B,S] each. A few dozen
        sequences of the task are enough.
      options: How; see there. None: for int8_mode 2, by the error of each layer's output.

    Returns:
      The `_amax` of every quantizer, by the names of NVIDIA's quantization toolkit below the
      model's own: what `optimize(model, int8_mode=..., amax=...)` takes, and what belongs into the
      state_dict to keep them.

    Raises:
      UserError: There is not one encoder that can be calibrated, there is no batch, a batch is not
        as expected, or the model has values that are not finite.
    """
    found = find_ranges(model, batches, options or calibrating.CalibrationOptions())
    return amax_buffers(model, found)


def amax_buffers(model: nn.Module, calibration: calibrating.Calibration) -> dict[str, torch.Tensor]:
    """Gives the ranges that `find_ranges` found in a model the names that `calibrate` returns."""
    path = f"{_find_bert(model)[0]}encoder."
    amax = torch_names.amax_buffers(calibration.amax)
    return {f"{path}{name}": torch.from_numpy(value) for name, value in amax.items()}


def find_ranges(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]],
    options: calibrating.CalibrationOptions,
) -> calibrating.Calibration:
    """As `calibrate`; returns the ranges by the names of the points, and what they were made of."""
    _, bert = _find_bert(model)
    checked = [_checked(index, batch) for index, batch in enumerate(batches)]
    if not checked:
        raise UserError("batches is empty, expected at least one batch of the task's data")
    inputs = [functools.partial(_embedded, bert, batch) for batch in checked]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            tensors = _encoder_variables(bert.encoder)
            tensors[_EMBEDDING_BETA] = _to_numpy(bert.embeddings.LayerNorm.bias)

            def observe(changed: Mapping[str, np.ndarray]) -> _Observed:
                if changed is not tensors:
                    _load_biases(bert, changed)
                return _Observed(bert.encoder, inputs)

            return calibrating.calibrate(tensors, observe, options)
    finally:
        model.train(was_training)


def calibrate_encoder(
    encoder: Any,
    hidden_states: torch.Tensor,
    is_real: torch.Tensor,
    options: calibrating.CalibrationOptions,
) -> dict[str, torch.Tensor]:
    """As `calibrate`, of an encoder alone, on one batch of what enters it.

    Args:
      encoder: transformers' BertEncoder, in evaluation mode.
      hidden_states: [B,S,H].
      is_real: bool [B,S], the tokens that count.
      options: How, without fold_shift: that changes the embeddings, too.

    Returns:
      The `_amax` by their names below the encoder, `layer.0....`.

    Raises:
      UserError: fold_shift is asked for, or values are not finite.
    """
    if options.fold_shift:
        raise UserError("fold_shift needs the embeddings, expected it off for an encoder alone")
    with torch.no_grad():
        found = calibrating.calibrate(
            _encoder_variables(encoder),
            lambda _: _Observed(encoder, [lambda: (hidden_states, is_real)]),
            options,
        )
    amax = torch_names.amax_buffers(found.amax)
    return {name: torch.from_numpy(value) for name, value in amax.items()}


def _find_bert(model: nn.Module) -> tuple[str, Any]:
    """Returns the BertModel in a module, and its path with a dot behind; "" for the module itself.

    Raises:
      UserError: There is none, or several, or one that is optimized or that the op cannot run.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    found = [
        (f"{path}." if path else "", module)
        for path, module in model.named_modules()
        if isinstance(module, modeling_bert.BertModel)
        and type(module.encoder) is modeling_bert.BertEncoder
    ]
    if len(found) != 1:
        raise UserError(
            f"{type(model).__name__} holds {len(found)} of transformers' BertModel that are not "
            "optimized, expected one"
        )
    return found[0]


def _checked(index: int, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Checks a batch; its attention_mask becomes bool, all true where there is none.

    Raises:
      UserError: It is not as `calibrate` takes it.
    """
    if "input_ids" not in batch:
        raise UserError(f"batches[{index}] has no input_ids, only {', '.join(batch)}")
    ids = batch["input_ids"]
    for name in _INPUTS:
        tensor = batch.get(name)
        if tensor is not None and (tensor.shape != ids.shape or ids.dim() != 2):
            raise UserError(
                f"batches[{index}]: {name} has shape {list(tensor.shape)}, expected [B,S] as "
                f"input_ids, {list(ids.shape)}"
            )
    mask = batch.get("attention_mask")
    return {
        **{name: batch[name] for name in _INPUTS if batch.get(name) is not None},
        "attention_mask": torch.ones_like(ids).bool() if mask is None else mask != 0,
    }


# The bias below the encoder that `fold_shift` moves.
_EMBEDDING_BETA = "bert/embeddings/LayerNorm/beta"


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    # A copy: the tensor may change while the array is compared with what it becomes.
    array: np.ndarray = tensor.detach().float().cpu().numpy().copy()
    return array


def _encoder_variables(encoder: Any) -> dict[str, np.ndarray]:
    """The float32 weights of an encoder by google's names."""
    return {
        points.full_name(index, weight.google): _to_numpy(
            layer.get_parameter(weight.hugging_face)
        ).T
        for index, layer in enumerate(encoder.layer)
        for weight in spec.LAYER_WEIGHTS
    }


def _load_biases(bert: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Puts the biases and betas of google's names back; kernels have not changed."""
    bert.embeddings.LayerNorm.bias.copy_(torch.from_numpy(tensors[_EMBEDDING_BETA]))
    for index, layer in enumerate(bert.encoder.layer):
        for weight in spec.LAYER_WEIGHTS:
            if not weight.is_kernel:
                value = tensors[points.full_name(index, weight.google)]
                layer.get_parameter(weight.hugging_face).copy_(torch.from_numpy(value))


# Makes what enters the encoder, [B,S,H], and which tokens are real, bool [B,S].
_Input = Callable[[], tuple[torch.Tensor, torch.Tensor]]


class _Observed:
    """`calibrating.Observed` of an encoder and its inputs."""

    def __init__(self, encoder: Any, inputs: Sequence[_Input]) -> None:
        self._encoder, self._inputs = encoder, inputs

    def _run(
        self, description: str, see: Callable[[Sequence[str], torch.Tensor, torch.Tensor], None]
    ) -> None:
        """Shows names of points, the tensor there and bool [B,S] of real tokens, of all batches."""
        bar = tqdm.tqdm(self._inputs, desc=description, unit="batch", file=sys.stderr)
        for make in bar:
            hidden, is_real = make()
            for index, layer in enumerate(self._encoder.layer):

                def point(scopes: Sequence[str], tensor: torch.Tensor, index: int = index) -> None:
                    see([points.full_name(index, s) for s in scopes], tensor, is_real)  # noqa: B023

                hidden = point_encoder.run_layer(layer, hidden, is_real, point)
            see([points.FINAL_POINT], hidden, is_real)

    def centres(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `calibrating.Observed`."""
        extremes = histograms.ChannelExtremes()

        def see(found: Sequence[str], tensor: torch.Tensor, is_real: torch.Tensor) -> None:
            for name in found:
                if name in names:
                    low, high = tensor[is_real].float().aminmax(dim=0)
                    extremes.add(name, low.cpu().numpy(), high.cpu().numpy())

        self._run("centring channels", see)
        return extremes.centres()

    def count(self) -> dict[str, histograms.Histogram]:
        """See `calibrating.Observed`."""
        counted: dict[str, histograms.Histogram] = {}

        def see(found: Sequence[str], tensor: torch.Tensor, is_real: torch.Tensor) -> None:
            scope = (points.split_name(found[0]) or (0, ""))[1]
            values = point_encoder.real_values(tensor, is_real, scope).abs().float()
            largest = float(values.max()) if values.numel() else 0.0
            histograms.check_finite({found[0]: largest})
            if found[0] not in counted:
                made = histograms.Histogram.for_values_up_to(largest)
                counted.update(dict.fromkeys(found, made))
            histogram = counted[found[0]]
            bins = (values / histogram.width).clamp_max(histograms.MOST_BINS - 1)
            histogram.add(torch.bincount(bins.int()).cpu().numpy(), largest)

        self._run("counting", see)
        return counted

    @contextlib.contextmanager
    def errors_of_layers(
        self, kernels: Sequence[Mapping[str, np.ndarray]], int8_mode: int
    ) -> Iterator[_LayerErrors]:
        """See `calibrating.Observed`."""
        hidden, is_real = self._inputs[0]()
        count = calibrating.count_of_few_tokens(is_real.sum(dim=1).cpu().numpy())
        yield _LayerErrors(self._encoder, hidden[:count], is_real[:count], kernels, int8_mode)


def _embedded(bert: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what enters the encoder, [B,S,H], and which tokens are real, bool [B,S]."""
    device = bert.embeddings.word_embeddings.weight.device
    given = {name: tensor.to(device) for name, tensor in batch.items()}
    is_real = given.pop("attention_mask")
    return bert.embeddings(**given), is_real


class _LayerErrors:
    """`range_search.LayerErrors` of the op itself, one layer at a time."""

    def __init__(
        self,
        encoder: Any,
        hidden: torch.Tensor,
        is_real: torch.Tensor,
        kernels: Sequence[Mapping[str, np.ndarray]],
        int8_mode: int,
    ) -> None:
        self._config, self._int8_mode, self._is_real = encoder.config, int8_mode, is_real
        self._input = hidden.float()
        self._expected = []
        self._layers = []
        self._kernels = []
        for layer, amax in zip(encoder.layer, kernels, strict=True):
            hidden = point_encoder.run_layer(layer, hidden, self._is_real, lambda *_: None)
            self._expected.append(hidden.float())
            columns = {
                weight.op_input: integers.column_ranges(
                    amax[weight.op_input], len(layer.get_parameter(weight.hugging_face))
                )
                for weight in points.KERNELS
            }
            self._kernels.append(columns)
            self._layers.append(_int8_weights(layer, columns))

    def _output(self, layer: int, slots: np.ndarray) -> torch.Tensor:
        """What a layer makes of the rounded layers below it, float32 [B,S,H]."""
        scales = scale_list.ScaleList(slots[layer], self._kernels[layer])
        heads = self._config.num_attention_heads
        sizes = {"head_num": heads, "size_per_head": self._config.hidden_size // heads}
        prepared = ops.prepare_encoder(
            [self._layers[layer]],
            **sizes,
            int8_mode=self._int8_mode,
            amax_lists=[torch.from_numpy(scales.to_array())],
        )
        (output,) = ops.bert_encoder(
            self._input,
            prepared,
            **sizes,
            inner_size=self._config.intermediate_size,
            num_layers=1,
            attention_mask=self._is_real,
            layernorm_epsilon=self._config.layer_norm_eps,
            activation=spec.OP_ACTIVATIONS[hf_conversion.ACTIVATIONS[self._config.hidden_act]],
            int8_mode=self._int8_mode,
        )
        return output

    def error(self, layer: int, slots: np.ndarray) -> float:
        """See `range_search.LayerErrors`."""
        difference = self._output(layer, slots) - self._expected[layer]
        return float(difference[self._is_real].square().sum(dtype=torch.float64))

    def advance(self, layer: int, slots: np.ndarray) -> None:
        """See `range_search.LayerErrors`."""
        self._input = self._output(layer, slots)


def _int8_weights(layer: Any, amax: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The op's weights of a layer, kernels rounded."""
    made = {}
    for weight in spec.LAYER_WEIGHTS:
        value = layer.get_parameter(weight.hugging_face).float()
        if weight.is_quantized:
            rounded = integers.quantize_kernel(value.T.cpu().numpy(), amax[weight.op_input])
            made[weight.op_input] = torch.from_numpy(rounded).to(value.device)
        else:
            made[weight.op_input] = value
    return made
