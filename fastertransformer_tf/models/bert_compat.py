"""bert-tensorflow 1.0.4 working under TensorFlow 2.21, without changing TensorFlow itself.

The only module that imports or patches bert-tensorflow: for its reading of data and flags, its
tokenizer, and the BertModel of users and of comparisons; models, losses and optimizer of this
package are its own. bert-tensorflow was written for TensorFlow 1.15: it imports
`tensorflow.contrib`, calls `tf.layers.dense`, reads flags before they are parsed, and two of its
programs define the same flags. Here each of its modules is loaded with its own stand-ins for
`tensorflow` and `absl.flags`; what TensorFlow still has is passed through. Nothing outside the
`bert` package is touched, and all its modules live in one process.

    modeling = bert_compat.modeling()          # also what `from bert import modeling` gives then
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import tensorflow as tf
from absl import flags as absl_flags

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import vocabulary
from fastertransformer_tf.graphs.variables import get_variable
from fastertransformer_tf.models import bert_layers, build_settings

_tf1 = tf.compat.v1
_lock = threading.RLock()
_state = threading.local()


class _Tf(ModuleType):
    """`tensorflow.compat.v1` as a bert module sees it."""

    def __init__(self, flags: ModuleType) -> None:
        super().__init__("tensorflow.compat.v1")
        self.flags = flags
        self.layers = SimpleNamespace(dense=bert_layers.dense)
        self.get_variable = get_variable

    def __getattr__(self, name: str) -> Any:
        return getattr(_tf1, name)


def _get_variable_in_floatx(name: str, shape: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
    return get_variable(name, shape, dtype or build_settings.current_floatx(), **kwargs)


class _ModelTf(_Tf):
    """The same for `bert.modeling`, whose float32 is the current `floatx`."""

    @property
    def float32(self) -> tf.DType:
        return build_settings.current_floatx()

    def __init__(self, flags: ModuleType) -> None:
        super().__init__(flags)
        self.get_variable = _get_variable_in_floatx

    @staticmethod
    def one_hot(indices: Any, depth: Any, dtype: Any = None, **kwargs: Any) -> tf.Tensor:
        return tf.one_hot(indices, depth, dtype=dtype or build_settings.current_floatx(), **kwargs)


# --- Flags ----------------------------------------------------------------------------------------


class _Flags:
    """FLAGS of a bert module: the program's value where it has one, else google's default."""

    def __init__(self, defaults: absl_flags.FlagValues) -> None:
        self._defaults = defaults

    def __getattr__(self, name: str) -> Any:
        bound = getattr(_state, "flags", None)
        if bound is not None and name in bound:
            return bound[name].value
        return self._defaults[name].value


class _FlagsModule(ModuleType):
    """`absl.flags` that defines into a private `FlagValues`, so that modules never collide."""

    def __init__(self) -> None:
        super().__init__("absl.flags")
        self.values = absl_flags.FlagValues()
        self.values.mark_as_parsed()
        self.FLAGS = _Flags(self.values)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(absl_flags, name)
        if name.startswith("DEFINE_"):
            return functools.partial(attribute, flag_values=self.values)
        if name == "mark_flag_as_required":
            return functools.partial(attribute, flag_values=self.values)
        return attribute


@contextlib.contextmanager
def bound_flags(values: absl_flags.FlagValues) -> Iterator[None]:
    """Makes bert's modules read their FLAGS from a program's parsed flags, in this thread.

    Args:
      values: The flags; a name it lacks keeps google's default.
    """
    previous = getattr(_state, "flags", None)
    _state.flags = values
    try:
        yield
    finally:
        _state.flags = previous


def define_google_flags(
    module: str,
    flag_values: absl_flags.FlagValues,
    owner: str,
    changed_help: Mapping[str, str] | None = None,
) -> None:
    """Defines the flags of google's program, with its help and defaults, in a program of ours.

    Args:
      module: "extract_features", "run_classifier" or "run_squad".
      flag_values: Where to define them. Flags that are there already are kept.
      owner: Name of our module, under which --help finds them.
      changed_help: Flag name to a help text that replaces google's.
    """
    for source in (_load(module), _load("tokenization")):
        defined = source.__dict__["_ft_flags"].values
        for name in defined:
            if name in flag_values:
                continue
            flag = copy.deepcopy(defined[name])  # Parsing sets a flag's value: never share it.
            if changed_help and name in changed_help:
                flag.help = changed_help[name]
            absl_flags.DEFINE_flag(flag, flag_values, module_name=owner)


# --- Loading --------------------------------------------------------------------------------------


def _make_import(fake_tf: ModuleType, fake_flags: ModuleType) -> Callable[..., Any]:
    """Makes the `__import__` of one bert module."""
    tensorflow = SimpleNamespace(compat=SimpleNamespace(v1=fake_tf))

    def import_(
        name: str,
        globals_: Any = None,
        locals_: Any = None,
        fromlist: tuple[str, ...] = (),
        level: int = 0,
    ) -> Any:
        if name == "tensorflow.compat.v1":
            return fake_tf if fromlist else tensorflow
        if name.startswith("tensorflow.contrib"):
            return SimpleNamespace(layers=SimpleNamespace(layer_norm=bert_layers.layer_norm))
        if name == "absl" and fromlist == ("flags",):
            return SimpleNamespace(flags=fake_flags)
        if name == "bert" and fromlist:
            return SimpleNamespace(**{child: _load(child) for child in fromlist})
        return builtins.__import__(name, globals_, locals_, fromlist, level)

    return import_


def _load(name: str) -> ModuleType:
    """Loads `bert.<name>` with its stand-ins, once.

    Raises:
      UserError: bert-tensorflow is not installed.
    """
    full_name = f"bert.{name}"
    with _lock:
        module = sys.modules.get(full_name)
        if module is not None and "_ft_flags" in module.__dict__:
            return module
        try:
            spec = importlib.util.find_spec(full_name)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.loader is None:
            raise UserError(
                f"{full_name} is not installed, expected bert-tensorflow 1.0.4: "
                "pip install bert-tensorflow==1.0.4"
            )
        flags = _FlagsModule()
        fake_tf = (_ModelTf if name == "modeling" else _Tf)(flags)
        module = importlib.util.module_from_spec(spec)
        # Python asks the `__import__` of a module's own builtins: only this module sees ours.
        module.__dict__["__builtins__"] = {
            **vars(builtins),
            "__import__": _make_import(fake_tf, flags),
        }
        module.__dict__["_ft_flags"] = flags
        sys.modules[full_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[full_name]
            raise
        if name == "modeling":
            _patch_modeling(module)
        if name == "tokenization":  # Its own numbers distinct tokens, not lines.
            module.__dict__["load_vocab"] = vocabulary.load
        setattr(sys.modules["bert"], name, module)
        return module


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


def modeling() -> ModuleType:
    """Returns `bert.modeling`: BertConfig, BertModel, transformer_model, ..."""
    return _load("modeling")


def tokenization() -> ModuleType:
    """Returns `bert.tokenization`: FullTokenizer, ..."""
    return _load("tokenization")


def run_classifier() -> ModuleType:
    """Returns `bert.run_classifier`: task processors, convert_examples_to_features, ..."""
    return _load("run_classifier")


def run_squad() -> ModuleType:
    """Returns `bert.run_squad`: SquadExample, write_predictions, create_model, ..."""
    return _load("run_squad")
