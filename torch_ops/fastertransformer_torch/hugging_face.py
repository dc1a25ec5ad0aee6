"""Hugging Face's BERT by the op: `optimize` replaces the encoders of a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert import modeling_bert

from fastertransformer_tf import spec
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import hf_conversion
from fastertransformer_tf.quantization import integers, points, ranges, scale_list, torch_names
from fastertransformer_torch import ops

_Model = TypeVar("_Model", bound=nn.Module)

# Where the op has kernels.
_DEVICES = ("cpu", "cuda")
_FLOAT_TYPES = {getattr(torch, name): name for name in spec.FLOAT_TYPES}
# Arguments of BertModel.forward that reach the encoder and change nothing here.
_HARMLESS_ARGUMENTS = frozenset({"output_hidden_states", "position_ids", "return_dict"})


def optimize(
    model: _Model,
    dtype: torch.dtype | None = None,
    remove_padding: bool = True,
    int8_mode: int = 0,
    amax: Mapping[str, torch.Tensor] | None = None,
) -> _Model:
    """Replaces every BERT encoder of a model by the op, for inference on CPUs and NVIDIA GPUs.

    Embeddings, pooler, heads, tokenizer and configuration stay what they are, and so does the
    state_dict: the encoder keeps its layers' parameters and holds their prepared form beside them,
    which follows when they are loaded, moved, converted or changed in place.

    Args:
      model: Any module with transformers' BertModel in it: the model itself, a task model such as
        BertForSequenceClassification, a SentenceTransformer. It is changed.
      dtype: What the encoder computes in: torch.float32, float16 or bfloat16; what it is given is
        converted to that, and what it returns back. None: the type of its weights.
      remove_padding: Compute the tokens that attention_mask keeps alone. The hidden states of the
        padding behind them are then 0, where transformers has numbers that mean nothing. On a GPU
        the host waits for the attention_mask, so that such a model cannot be captured into a CUDA
        graph.
      int8_mode: 0, or 1, 2 or 3 (which is 2): products of int8 (docs/int8.md). The model's weights
        stay; their prepared form is int8.
      amax: With int8_mode, the ranges of activations and weights: the state_dict of this model, as
        NVIDIA's quantization toolkit has calibrated or trained it, of which the `_amax` are read.

    Returns:
      `model`.

    Raises:
      UserError: There is no encoder in `model`, or one that the op does not compute: decoders,
        cross attention, relative positions, other activations, layers of other classes; or ranges
        are missing or cannot be used. `model` is as it was.
    """
    if int8_mode not in (0, 1, 2, 3):
        raise UserError(f"int8_mode is {int8_mode!r}, expected 0, 1, 2 or 3")
    if (int8_mode == 0) != (amax is None):
        given = "not given" if amax is None else "given"
        raise UserError(f"int8_mode is {int8_mode} and amax is {given}, expected both or neither")
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    if dtype is not None and dtype not in _FLOAT_TYPES:
        raise UserError(f"dtype is {dtype}, expected one of {', '.join(map(str, _FLOAT_TYPES))}")
    found = [
        (path, encoder)
        for path, encoder in model.named_modules()
        if path and type(encoder) is modeling_bert.BertEncoder
    ]
    if not found:
        raise UserError(
            f"{type(model).__name__} holds no encoder of transformers' BertModel, expected one "
            "that is not optimized yet"
        )
    faults = [fault for _, encoder in found for fault in _faults(encoder)]
    if faults:
        raise UserError(f"the op does not compute this encoder: {listed(faults)}")
    # All are made before any is put in its place.
    made = []
    for path, encoder in found:
        scales = [] if amax is None else _scale_lists(path, encoder, amax)
        made.append(OptimizedEncoder(encoder, dtype, remove_padding, int8_mode, scales))
    for (path, encoder), optimized in zip(found, made, strict=True):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, optimized)
        for layer in encoder.layer:
            layer.__class__ = _ComputedLayer
    return model


def _faults(encoder: Any) -> list[str]:
    """Says what of an encoder the op does not compute."""
    config = encoder.config
    faults = []
    fault = hf_conversion.config_fault(config.to_dict())
    if fault:
        faults.append(fault)
    if config.hidden_act not in hf_conversion.ACTIVATIONS:
        known = ", ".join(hf_conversion.ACTIVATIONS)
        faults.append(f"hidden_act is {config.hidden_act!r}, expected one of {known}")
    for index, layer in enumerate(encoder.layer):
        for weight in spec.LAYER_WEIGHTS:
            path, _, name = weight.hugging_face.rpartition(".")
            module = layer.get_submodule(path)
            expected = nn.LayerNorm if "LayerNorm" in path else nn.Linear
            if type(module) is not expected:
                what = f"{type(module).__name__}, expected {expected.__name__}"
                faults.append(f"layer.{index}.{path} is a {what}")
            elif getattr(module, name) is None:
                faults.append(f"layer.{index}.{path} has no {name}")
            elif expected is nn.LayerNorm and module.eps != config.layer_norm_eps:
                fault = f"{module.eps}, expected layer_norm_eps, {config.layer_norm_eps}"
                faults.append(f"layer.{index}.{path}.eps is {fault}")
    return list(dict.fromkeys(faults))  # A module is asked for each of its weights.


def _scale_lists(
    path: str, encoder: Any, amax: Mapping[str, torch.Tensor]
) -> list[scale_list.ScaleList]:
    """Reads the ranges of an encoder that is at `path` in the model.

    Raises:
      UserError: Some are missing or cannot be used.
    """
    below = {
        name.removeprefix(f"{path}."): value.detach().float().cpu().numpy()
        for name, value in amax.items()
        if name.startswith(f"{path}.") and name.endswith("._amax")
    }
    tensors = torch_names.quantizer_variables(below, len(encoder.layer))
    for index, layer in enumerate(encoder.layer):
        for field in points.KERNELS:
            kernel = layer.get_parameter(field.hugging_face).detach().float().cpu().numpy().T
            tensors[points.full_name(index, field.google)] = kernel
    return ranges.scale_lists(tensors)


def _refresh_after_load(encoder: OptimizedEncoder, incompatible_keys: object) -> None:
    encoder.refresh()


class _ComputedLayer(modeling_bert.BertLayer):
    """A layer whose output the op has computed; its hooks, and transformers' recorder, see it."""

    def forward(
        self, hidden_states: torch.Tensor, output: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns `output`."""
        if output is None:
            raise RuntimeError(
                "a layer of an optimized encoder was called by itself, expected the whole encoder"
            )
        return output


class OptimizedEncoder(nn.Module):
    """transformers' BertEncoder, computed by one op, with the same parameters and state_dict."""

    def __init__(
        self,
        encoder: Any,
        dtype: torch.dtype | None,
        remove_padding: bool,
        int8_mode: int = 0,
        scales: Sequence[scale_list.ScaleList] = (),
    ) -> None:
        """Takes over an encoder that `optimize` has found right; `scales` are with int8_mode.

        Raises:
          UserError: Its weights have a type that the op does not compute in, and dtype is None.
        """
        super().__init__()
        self.config = encoder.config
        self.layer = encoder.layer
        self.training = encoder.training
        self.dtype = dtype
        self._compute_dtype = dtype
        self.remove_padding = remove_padding
        self.int8_mode = int8_mode
        self._scales = list(scales)
        # PyTorch's setting at the last call that was not compiled.
        self._allow_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        self._owners = [
            (layer.get_submodule(path), name)
            for layer in encoder.layer
            for path, _, name in (w.hugging_face.rpartition(".") for w in spec.LAYER_WEIGHTS)
        ]
        # What `prepared` was made of: the tensors, their addresses and versions.
        self._sources: list[tuple[torch.Tensor, int, int | None]] = []
        self.register_buffer("prepared", None, persistent=False)
        self.register_load_state_dict_post_hook(_refresh_after_load)
        self.refresh()

    def refresh(self) -> None:
        """Prepares the weights again if they have changed.

        Loading, moving and converting the model do it, and every call outside of torch.compile. A
        compiled model does not see weights that are changed in place: then call this.

        Raises:
          UserError: As for the constructor.
        """
        if self._is_current():
            return
        weights = [module._parameters[name] for module, name in self._owners]
        if weights[0].device.type not in _DEVICES:
            self._sources = []  # forward refuses other devices.
            return
        dtype = self.dtype or weights[0].dtype
        if dtype not in _FLOAT_TYPES:
            raise UserError(
                f"the encoder's weights are {dtype}, expected one of "
                f"{', '.join(map(str, _FLOAT_TYPES))}, or one of them as dtype"
            )
        self._compute_dtype = dtype
        sources = [(weight, weight.data_ptr(), _version(weight)) for weight in weights]
        count = len(spec.LAYER_WEIGHTS)
        with torch.no_grad():
            layers = [
                self._make_layer(begin // count, weights[begin : begin + count], dtype)
                for begin in range(0, len(weights), count)
            ]
            self.prepared = ops.prepare_encoder(
                layers,
                **self._heads(),
                int8_mode=self.int8_mode,
                amax_lists=[torch.from_numpy(scales.to_array()) for scales in self._scales],
            )
        self._sources = sources

    def _make_layer(
        self, index: int, weights: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """The op's weights of a layer, of the model's in the order of `spec.LAYER_WEIGHTS`."""
        layer = {}
        for field, weight in zip(spec.LAYER_WEIGHTS, weights, strict=True):
            if self.int8_mode and field.is_quantized:
                kernel = weight.T.float().cpu().numpy()
                amax = self._scales[index].kernels[field.op_input]
                rounded = torch.from_numpy(integers.quantize_kernel(kernel, amax))
                layer[field.op_input] = rounded.to(weight.device)
            else:
                layer[field.op_input] = (weight.T if field.is_kernel else weight).to(dtype)
        return layer

    def _is_current(self) -> bool:
        # Every call comes here, for each of 16 L weights: 0.04 ms for BERT-base.
        if not self._sources:
            return False
        for (module, name), (known, address, version) in zip(
            self._owners, self._sources, strict=True
        ):
            weight = module._parameters[name]
            if weight is not known or weight.data_ptr() != address:
                return False
            if version is not None and weight._version != version:
                return False
        return True

    def _heads(self) -> dict[str, int]:
        heads = self.config.num_attention_heads
        return {"head_num": heads, "size_per_head": self.config.hidden_size // heads}

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> OptimizedEncoder:
        super()._apply(fn, recurse)
        self.refresh()
        return self

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: object | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Computes all layers.

        Args:
          hidden_states: [B,S,H], the embeddings.
          attention_mask: None, or bool (True: seen) or floating point (added to the scores: 0 or at
            most -10000), [B,S], [B,1,1,S], [B,S,S] or [B,1,S,S].
          encoder_hidden_states: None.
          encoder_attention_mask: None.
          past_key_values: None.
          use_cache: None or False.
          **kwargs: What BertModel hands on: output_hidden_states, and what is not asked for.

        Returns:
          The last layer's hidden states. Those of all layers are taken by transformers' recorder.

        Raises:
          RuntimeError: The module is in training mode.
          ValueError: Something is asked for that the op does not compute: attentions, a cache, a
            bias on the scores, another device than a CPU or an NVIDIA GPU.
        """
        if self.training:
            raise RuntimeError(
                "the model is in training mode, but its optimized encoder is for inference: call "
                "model.eval() first"
            )
        asked = {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "output_attentions": self.config.output_attentions,
            **kwargs,
        }
        for name, value in asked.items():
            if name not in _HARMLESS_ARGUMENTS and value is not None and value is not False:
                raise ValueError(f"{name} is given, which an optimized encoder does not have")
        if hidden_states.device.type not in _DEVICES:
            raise ValueError(f"the model is on {hidden_states.device}, expected cpu or cuda")
        if not torch.compiler.is_compiling():
            self.refresh()
            self._allow_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        records = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        records = bool(records) or any(
            layer._forward_hooks or layer._forward_pre_hooks for layer in self.layer
        )
        outputs = ops.bert_encoder(
            hidden_states.to(self._compute_dtype),
            self.prepared,
            **self._heads(),
            inner_size=self.config.intermediate_size,
            num_layers=len(self.layer),
            attention_mask=attention_mask,
            num_outputs=len(self.layer) if records else 1,
            remove_padding=self.remove_padding,
            layernorm_epsilon=self.config.layer_norm_eps,
            activation=spec.OP_ACTIVATIONS[hf_conversion.ACTIVATIONS[self.config.hidden_act]],
            int8_mode=self.int8_mode,
            allow_tf32=self._allow_tf32,
        )
        outputs = [output.to(hidden_states.dtype) for output in outputs]
        if records:
            layer_input = hidden_states
            for layer, output in zip(self.layer, outputs, strict=True):
                layer_input = layer(layer_input, output)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=outputs[-1])


def _version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was changed in place; None of one of inference mode: nobody counts."""
    return None if tensor.is_inference() else tensor._version
