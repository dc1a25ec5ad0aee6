"""Fast BERT inference in PyTorch: the engine of fastertransformer_tf as dispatcher ops.

The import loads the library with the ops, `torch.ops.fastertransformer`. It needs no TensorFlow.
"""

from __future__ import annotations

from fastertransformer_torch.ops import bert_encoder, prepare_encoder

__all__ = ["bert_encoder", "prepare_encoder"]
