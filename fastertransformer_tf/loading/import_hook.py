"""Loads the ops as soon as TensorFlow is there, without loading TensorFlow for their sake.

A SavedModel or GraphDef that holds the ops can be read only when they are registered. Its user
writes `import fastertransformer_tf` and `import tensorflow`, in whatever order, and need not call
anything of this package. Free of TensorFlow.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TENSORFLOW = "tensorflow"
_OPS = "fastertransformer_tf.ops"


class OpsNotLoadedWarning(UserWarning):
    """TensorFlow is loaded, but not the ops: models that hold them cannot be loaded."""


def load_ops_with_tensorflow() -> None:
    """Loads the ops: now where TensorFlow is loaded already, else right after it will be.

    Raises:
      ImportError: Now, and the ops cannot be loaded. Later that is a warning, since TensorFlow,
        which may be wanted for something else, would be what cannot be imported; whoever uses an op
        gets the error.
    """
    if sys.modules.get(_TENSORFLOW) is not None:
        importlib.import_module(_OPS)
    else:
        sys.meta_path.insert(0, _TensorFlowFinder())


class _TensorFlowFinder:
    """Finds TensorFlow where the other finders do, and lets its loader call back at the end."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns TensorFlow's own spec; None of any other module."""
        if name != _TENSORFLOW or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)  # Python 3.11 still knows finders without.
            spec = find(name, path, target) if find is not None else None
            if spec is not None:
                self._call_back_after(spec.loader)
                return spec
        return None

    def _call_back_after(self, loader: Any) -> None:
        """Lets a loader load the ops after TensorFlow.

        The loader stays the one that TensorFlow would have: a spec may be asked for without
        anything being imported then, and modules are told by the type of their loader.
        """
        execute = getattr(loader, "exec_module", None)
        if execute is None:  # A namespace: some folder of that name, not the library.
            return

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ == _TENSORFLOW:  # A loader may be shared, as PyInstaller's is.
                loader.exec_module = execute
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _load_ops_or_warn()

        loader.exec_module = exec_module


def _load_ops_or_warn() -> None:
    try:
        importlib.import_module(_OPS)
    except Exception as error:  # Whatever it is, TensorFlow itself has been imported.
        message = f"{error}; models with its ops cannot be loaded"
        warnings.warn(message, OpsNotLoadedWarning, stacklevel=2)
