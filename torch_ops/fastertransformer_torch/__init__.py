"""Fast BERT inference in PyTorch: the engine of fastertransformer_tf under Hugging Face's models.

    import fastertransformer_torch
    model = transformers.AutoModel.from_pretrained(...)
    fastertransformer_torch.optimize(model)

The import loads the library with the ops, `torch.ops.fastertransformer`. It needs no TensorFlow,
and transformers for `optimize`, `calibrate` and `load_model` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastertransformer_torch.ops import bert_encoder, prepare_encoder

if TYPE_CHECKING:
    from fastertransformer_tf.quantization.calibrating import CalibrationOptions
    from fastertransformer_torch.calibration import calibrate
    from fastertransformer_torch.hugging_face import OptimizedEncoder, optimize
    from fastertransformer_torch.loading import load_model

__all__ = [
    "CalibrationOptions",
    "OptimizedEncoder",
    "bert_encoder",
    "calibrate",
    "load_model",
    "optimize",
    "prepare_encoder",
]

# What needs more than PyTorch, and the module that holds it.
_LATER = {
    "CalibrationOptions": "fastertransformer_tf.quantization.calibrating",
    "OptimizedEncoder": f"{__name__}.hugging_face",
    "calibrate": f"{__name__}.calibration",
    "load_model": f"{__name__}.loading",
    "optimize": f"{__name__}.hugging_face",
}


def __getattr__(name: str) -> Any:
    """Loads what needs transformers when it is first asked for (PEP 562)."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
