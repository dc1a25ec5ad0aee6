"""The ops with types and documentation; importing this module loads the .so with them.

They are PyTorch's dispatcher ops, `torch.ops.fastertransformer.prepare_encoder` and `bert_encoder`:
without state, traceable by torch.compile and torch.export, on the CPU and on NVIDIA GPUs. Shape
letters: B batch, S padded length, L layers, N heads, D size of a head, H = N*D, I inner size of the
feed-forward network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastertransformer_tf import spec
from fastertransformer_torch import library

# The weights of one layer, in the order of the ops' inputs; `spec.LAYER_WEIGHTS` has their shapes.
LAYER_WEIGHTS = tuple(weight.op_input for weight in spec.LAYER_WEIGHTS)

library.load()


@torch.library.register_fake("fastertransformer::prepare_encoder")
def _prepare_encoder_fake(
    weights: Sequence[torch.Tensor],
    amax_lists: Sequence[torch.Tensor],
    head_num: int,
    size_per_head: int,
    int8_mode: int = 0,
) -> torch.Tensor:
    # How many bytes is the processor's business.
    size = torch.library.get_ctx().new_dynamic_size()
    return weights[0].new_empty([size], dtype=torch.uint8)


@torch.library.register_fake("fastertransformer::bert_encoder")
def _bert_encoder_fake(
    hidden_states: torch.Tensor,
    sequence_length: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    prepared: torch.Tensor,
    head_num: int,
    size_per_head: int,
    inner_size: int,
    num_layers: int,
    num_outputs: int = 1,
    remove_padding: bool = True,
    layernorm_epsilon: float = spec.GOOGLE_LAYER_NORM_EPS,
    activation: str = "gelu_tanh",
    int8_mode: int = 0,
    allow_tf32: bool = False,
) -> list[torch.Tensor]:
    return [hidden_states.new_empty(hidden_states.shape) for _ in range(num_outputs)]


@torch.library.custom_op("fastertransformer::gradient_not_available", mutates_args=())
def _gradient_not_available(gradient: torch.Tensor) -> torch.Tensor:
    """Fails when it runs: a graph that torch.compile makes may hold it and never need it."""
    raise NotImplementedError(
        "fastertransformer::bert_encoder has no gradient: it is for inference. Train the model "
        "before optimize(), or detach a frozen encoder's output"
    )


@_gradient_not_available.register_fake
def _(gradient: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gradient)


def _refuse_gradient(context: Any, gradients: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    gradient = next(gradient for gradient in gradients if gradient is not None)
    # How many inputs there are: a call leaves out the last ones that are the schema's defaults.
    num_inputs = len(context.needs_input_grad)
    return (_gradient_not_available(gradient), *[None] * (num_inputs - 1))


torch.library.register_autograd("fastertransformer::bert_encoder", _refuse_gradient)


def prepare_encoder(
    layers: Sequence[Mapping[str, torch.Tensor]],
    *,
    head_num: int,
    size_per_head: int,
    int8_mode: int = 0,
    amax_lists: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Brings the weights of an encoder into the layout of the kernels of their device.

    The result is for this kind of processor or GPU, these sizes and this type; `bert_encoder`
    refuses another. It does not follow the weights when they change.

    Args:
      layers: The weights of every layer, first to last, keyed as `LAYER_WEIGHTS`; shapes as
        `spec.LAYER_WEIGHTS` has them, kernels [in,out]. Any strides: a torch.nn.Linear's
        `weight.T` will do. All of one device and of one type, float32, float16 or bfloat16, but
        with int8_mode, where the six kernels are int8.
      head_num: N.
      size_per_head: D.
      int8_mode: 0, or 1, 2 or 3 (which is 2): the kernels are int8 (docs/int8.md).
      amax_lists: L times float32 [80+5*H+I+11], the scales of int8_mode 1 to 3; none when it is 0.
        On the CPU or beside the weights.

    Returns:
      uint8 [bytes], on the weights' device.

    Raises:
      ValueError: `layers` is empty, a layer's keys are not exactly `LAYER_WEIGHTS`, or weights have
        a wrong type, shape or device.
      RuntimeError: They are on a GPU, and the library was built without CUDA.
    """
    spec.check_layers(layers)
    return torch.ops.fastertransformer.prepare_encoder(
        [layer[key] for layer in layers for key in LAYER_WEIGHTS],
        list(amax_lists),
        head_num,
        size_per_head,
        int8_mode,
    )


def bert_encoder(
    hidden_states: torch.Tensor,
    prepared: torch.Tensor,
    *,
    head_num: int,
    size_per_head: int,
    inner_size: int,
    num_layers: int,
    sequence_length: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    num_outputs: int = 1,
    remove_padding: bool = True,
    layernorm_epsilon: float = spec.GOOGLE_LAYER_NORM_EPS,
    activation: str = "gelu_tanh",
    int8_mode: int = 0,
    allow_tf32: bool = False,
) -> list[torch.Tensor]:
    """Computes a stack of post-layer-norm BERT layers in one call.

    Source: google-research/bert, modeling.py, transformer_model. On the CPU it runs on PyTorch's
    intra-op threads (torch.set_num_threads), on a GPU on PyTorch's current stream. There is no
    gradient.

    On a GPU the host waits for it where numbers decide what is computed: with `remove_padding` for
    the lengths, where they are there or in a mask, and for the numbers of a float mask. While a
    CUDA graph is captured such a call is refused.

    Args:
      hidden_states: [B,S,H], the embeddings: float32, float16 or bfloat16.
      prepared: `prepare_encoder`'s, of weights of the same type and device.
      head_num: N.
      size_per_head: D.
      inner_size: I.
      num_layers: L.
      sequence_length: int32 or int64 [B], each in [0,S]: the first sequence_length[b] tokens of
        sequence b are real. None: all are. On the CPU, or, which a GPU has to be waited for,
        beside hidden_states.
      attention_mask: Which keys a query sees, on top of the lengths: bool, True where it does, or
        float32 as it is added to the scores, 0 where it does and at most -10000 where not; another
        number is refused. [B,S] or [B,1,1,S]: the same for all queries; [B,S,S] or [B,1,S,S].
        Without lengths, a mask that is the same for all queries says them too: a sequence ends
        with the last key that is seen. (On a GPU only with remove_padding.)
      num_outputs: 1, the last layer's, or L.
      remove_padding: Compute the real tokens alone, where lengths are known.
      layernorm_epsilon: Added to the variance in both layer norms.
      activation: Of the feed-forward network: gelu_tanh (google's gelu), gelu_erf or relu.
      int8_mode: That of `prepare_encoder`.
      allow_tf32: On a GPU: products of float32 may use TensorFloat-32.

    Returns:
      num_outputs tensors [B,S,H] of hidden_states' type. With remove_padding the rows past a
      sequence's length are 0.

    Raises:
      ValueError: An input has a wrong shape, type, device or value.
      RuntimeError: A GPU's stream is captured, and the host would have to wait for it; or the
        library was built without CUDA.
    """
    return torch.ops.fastertransformer.bert_encoder(
        hidden_states,
        sequence_length,
        attention_mask,
        prepared,
        head_num,
        size_per_head,
        inner_size,
        num_layers,
        num_outputs,
        remove_padding,
        layernorm_epsilon,
        activation,
        int8_mode,
        allow_tf32,
    )
