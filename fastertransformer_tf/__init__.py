"""Fast BERT inference in TensorFlow.

    import fastertransformer_tf, tensorflow as tf
    model = tf.saved_model.load(...)

A SavedModel or GraphDef that holds the ops needs nothing but this import before it is loaded, in
whatever order the two imports come. By itself the import loads neither TensorFlow nor the library
with the ops: they are loaded when TensorFlow is, or when an op is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastertransformer_tf.loading import import_hook

if TYPE_CHECKING:
    from fastertransformer_tf import errors, ops, spec
    from fastertransformer_tf.keras_layers import BertEncoder
    from fastertransformer_tf.ops import (
        bert_encoder,
        bert_transformer,
        build_mask_remove_padding,
        rebuild_padding,
    )
    from fastertransformer_tf.rewriting.optimizer import optimize
    from fastertransformer_tf.text_model import TextModel, load

__version__ = "0.1.0"

__all__ = [
    "BertEncoder",
    "TextModel",
    "__version__",
    "bert_encoder",
    "bert_transformer",
    "build_mask_remove_padding",
    "errors",
    "load",
    "ops",
    "optimize",
    "rebuild_padding",
    "spec",
]

_MODULES = ("errors", "ops", "spec")
# What is in another module than `ops`.
_HOMES = {
    "BertEncoder": "keras_layers",
    "TextModel": "text_model",
    "load": "text_model",
    "optimize": "rewriting.optimizer",
}


def __getattr__(name: str) -> Any:
    """Loads a module, or an op with TensorFlow, when it is first asked for (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'ops')}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names also what is not loaded yet."""
    return sorted({*globals(), *__all__})


import_hook.load_ops_with_tensorflow()
