"""bert-tensorflow 1.0.4's programs, of which data and flags need no TensorFlow.

The only module that imports bert-tensorflow. Its modules were written for TensorFlow 1.15: they
import all of it, read flags before they are parsed, and two of them define the same flags. Here
each is loaded with stand-ins of its own for `tensorflow` and `absl.flags`. What cuts texts and
chooses answers uses the flags, the log and the files of that `tensorflow` alone, which the stand-in
has by itself; what builds graphs, `models.bert_compat` gives it. Nothing outside the `bert` package
is touched, and all its modules live in one process. Free of TensorFlow.

    tokenizer = google_bert.tokenization().FullTokenizer(vocab_file)
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

from absl import flags as absl_flags

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import vocabulary

_lock = threading.RLock()
_state = threading.local()
# Name of a module of bert's -> what its `tensorflow.compat.v1` is, but for flags, log and files.
_tensorflow_of: Callable[[str], Any] | None = None
# Name of a module of bert's -> what is changed in it once it is loaded.
_patches: dict[str, Callable[[Any], None]] = {}


def use_tensorflow(
    tensorflow_of: Callable[[str], Any], patches: Mapping[str, Callable[[Any], None]]
) -> None:
    """Lets bert's modules build graphs from now on; `models.bert_compat` calls it.

    Args:
      tensorflow_of: Of the name of a module: what it imports as `tensorflow.compat.v1`.
      patches: Name of a module to what is done to it once it is loaded.
    """
    global _tensorflow_of
    _tensorflow_of = tensorflow_of
    _patches.update(patches)


def _open(name: str, mode: str = "r") -> Any:
    """TensorFlow's GFile of a local file: UTF-8, lines as they are."""
    return open(name, mode, encoding="utf-8", newline="\n")


class _Tf(ModuleType):
    """`tensorflow.compat.v1` as a bert module sees it."""

    def __init__(self, module: str, flags: ModuleType) -> None:
        super().__init__("tensorflow.compat.v1")
        self._module = module
        self.flags = flags
        self.gfile = SimpleNamespace(GFile=_open, Open=_open)
        self.logging = logging.getLogger("tensorflow")  # TensorFlow's own, where it is loaded.

    def __getattr__(self, name: str) -> Any:
        if _tensorflow_of is None:
            raise AttributeError(
                f"bert.{self._module} uses tensorflow.{name}, but there is no TensorFlow here: "
                "import fastertransformer_tf.models.bert_compat first"
            )
        return getattr(_tensorflow_of(self._module), name)


class _Later(ModuleType):
    """A module that another one of bert's imports, loaded where it is first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(load(self.__name__.removeprefix("bert.")), name)


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
    for source in (load(module), load("tokenization")):
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
            return fake_tf.contrib
        if name == "absl" and fromlist == ("flags",):
            return SimpleNamespace(flags=fake_flags)
        if name == "bert" and fromlist:
            return SimpleNamespace(**{child: _Later(f"bert.{child}") for child in fromlist})
        return builtins.__import__(name, globals_, locals_, fromlist, level)

    return import_


def load(name: str) -> ModuleType:
    """Loads `bert.<name>` with its stand-ins, once; `from bert import <name>` gives it then, too.

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
        module = importlib.util.module_from_spec(spec)
        # Python asks the `__import__` of a module's own builtins: only this module sees ours.
        module.__dict__["__builtins__"] = {
            **vars(builtins),
            "__import__": _make_import(_Tf(name, flags), flags),
        }
        module.__dict__["_ft_flags"] = flags
        sys.modules[full_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[full_name]
            raise
        if name in _patches:
            _patches[name](module)
        if name == "tokenization":  # Its own numbers distinct tokens, not lines.
            module.__dict__["load_vocab"] = vocabulary.load
        setattr(sys.modules["bert"], name, module)
        return module


def tokenization() -> ModuleType:
    """Returns `bert.tokenization`: FullTokenizer, ..."""
    return load("tokenization")


def run_classifier() -> ModuleType:
    """Returns `bert.run_classifier`: task processors, convert_examples_to_features, ..."""
    return load("run_classifier")


def run_squad() -> ModuleType:
    """Returns `bert.run_squad`: SquadExample, write_predictions, create_model, ..."""
    return load("run_squad")
