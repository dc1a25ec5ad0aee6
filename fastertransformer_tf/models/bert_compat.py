"""bert-tensorflow 1.0.4's graphs working under TensorFlow 2.21, without changing TensorFlow itself.

What its modules need of TensorFlow 1.15 to build graphs: for the BertModel of users and of
comparisons; models, losses and optimizer of this package are its own. It imports
`tensorflow.contrib` and calls `tf.layers.dense`; what TensorFlow still has is passed through.
Importing this module gives all that to `google_bert`, which loads bert-tensorflow.

    modeling = bert_compat.modeling()          # also what `from bert import modeling` gives then
"""

from __future__ import annotations

import functools
from types import ModuleType, SimpleNamespace
from typing import Any

import tensorflow as tf

from fastertransformer_tf import google_bert
from fastertransformer_tf.graphs.variables import get_variable
from fastertransformer_tf.models import bert_layers, build_settings

_tf1 = tf.compat.v1


class _Tf:
    """`tensorflow.compat.v1` as a bert module sees it, but for what `google_bert` has."""

    layers = SimpleNamespace(dense=bert_layers.dense)
    contrib = SimpleNamespace(layers=SimpleNamespace(layer_norm=bert_layers.layer_norm))
    get_variable = staticmethod(get_variable)

    def __getattr__(self, name: str) -> Any:
        return getattr(_tf1, name)


class _ModelTf(_Tf):
    """The same for `bert.modeling`, whose float32 is the current `floatx`."""

    @property
    def float32(self) -> tf.DType:
        return build_settings.current_floatx()

    @staticmethod
    def get_variable(name: str, shape: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
        return get_variable(name, shape, dtype or build_settings.current_floatx(), **kwargs)

    @staticmethod
    def one_hot(indices: Any, depth: Any, dtype: Any = None, **kwargs: Any) -> tf.Tensor:
        return tf.one_hot(indices, depth, dtype=dtype or build_settings.current_floatx(), **kwargs)


_TF, _MODEL_TF = _Tf(), _ModelTf()


def _tensorflow_of(module: str) -> _Tf:
    return _MODEL_TF if module == "modeling" else _TF


def _patch_modeling(module: Any) -> None:
    """Gives `bert.modeling` our dropout, and its BertModel the epsilon of the configuration."""
    module.dropout = bert_layers.dropout
    build = module.BertModel.__init__

    @functools.wraps(build)
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        epsilon = getattr(config, "layer_norm_eps", build_settings.current_layer_norm_epsilon())
        with build_settings.layer_norm_epsilon(epsilon):
            build(self, config, *args, **kwargs)

    module.BertModel.__init__ = init


google_bert.use_tensorflow(_tensorflow_of, {"modeling": _patch_modeling})


def modeling() -> ModuleType:
    """Returns `bert.modeling`: BertConfig, BertModel, transformer_model, ..."""
    return google_bert.load("modeling")
