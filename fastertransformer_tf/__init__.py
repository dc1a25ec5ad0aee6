"""Fast BERT inference in TensorFlow. Importing this package loads its ops.

A SavedModel or GraphDef that holds the ops needs nothing but this import before it is loaded.
"""

from fastertransformer_tf.ops import (
    bert_encoder,
    bert_transformer,
    build_mask_remove_padding,
    rebuild_padding,
)

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "bert_encoder",
    "bert_transformer",
    "build_mask_remove_padding",
    "rebuild_padding",
]
