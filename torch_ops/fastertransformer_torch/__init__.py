"""Fast BERT inference in PyTorch: the engine of fastertransformer_tf under Hugging Face's models.

    import fastertransformer_torch
    model = transformers.AutoModel.from_pretrained(...)
    fastertransformer_torch.optimize(model)

The import loads the library with the ops, `torch.ops.fastertransformer`. It needs no TensorFlow,
and transformers for `optimize` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastertransformer_torch.ops import bert_encoder, prepare_encoder

if TYPE_CHECKING:
    from fastertransformer_torch.hugging_face import OptimizedEncoder, optimize

__all__ = ["OptimizedEncoder", "bert_encoder", "optimize", "prepare_encoder"]


def __getattr__(name: str) -> Any:
    """Loads what needs transformers when it is first asked for (PEP 562)."""
    if name in ("OptimizedEncoder", "optimize"):
        return getattr(importlib.import_module(f"{__name__}.hugging_face"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
