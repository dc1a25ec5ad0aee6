"""`import fastertransformer_tf`: what it loads and when, in processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf
from conftest import REPOSITORY

from fastertransformer_tf import ops, spec

# Whether the op is registered; TensorFlow itself has no public way to ask.
IS_REGISTERED = """
from tensorflow.python.framework import op_def_registry
print("registered", op_def_registry.get("BertEncoder") is not None)
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def output(code: str, **environment: str) -> str:
    result = run(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_loads_nothing_but_itself() -> None:
    loaded = output(
        "import sys; before = set(sys.modules); import fastertransformer_tf\n"
        "names = {n.partition('.')[0] for n in set(sys.modules) - before}\n"
        "print(*sorted(names - set(sys.stdlib_module_names)))"
    )
    assert loaded == "fastertransformer_tf"


@pytest.mark.parametrize(
    "imports",
    [
        "import fastertransformer_tf, tensorflow",
        "import tensorflow, fastertransformer_tf",
        "import fastertransformer_tf, tensorflow.compat.v1 as tf",
        "import fastertransformer_tf, importlib.util\n"
        "importlib.util.find_spec('tensorflow')  # Asked for, not imported.\n"
        "import tensorflow",
        "import sys, fastertransformer_tf\n"
        "for name in [n for n in sys.modules if n.startswith('fastertransformer_tf')]:\n"
        "    del sys.modules[name]\n"
        "import fastertransformer_tf, tensorflow",
        "import fastertransformer_tf.ops",
        "from fastertransformer_tf import bert_encoder",
    ],
)
def test_the_ops_are_registered_once_tensorflow_is_there(imports: str) -> None:
    assert output(imports + IS_REGISTERED) == "registered True"


def test_tensorflow_is_imported_as_without_this_package() -> None:
    code = "import tensorflow, sys; print(type(tensorflow.__spec__.loader), len(sys.meta_path))"
    assert output(f"import fastertransformer_tf; {code}") == output(code)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SavedModel that holds the op."""
    module = tf.Module()
    layer = {w.op_input: tf.ones(w.sizes(8, 8)) for w in spec.LAYER_WEIGHTS}

    @tf.function(input_signature=[tf.TensorSpec([1, 2, 8])])
    def encode(x: tf.Tensor) -> tf.Tensor:
        return ops.bert_encoder(x, None, None, [layer], head_num=1, size_per_head=8)[0]

    module.encode = encode
    path = tmp_path_factory.mktemp("saved") / "model"
    tf.saved_model.save(module, str(path))
    return path


@pytest.mark.parametrize(
    "imports",
    [
        "import fastertransformer_tf; import tensorflow as tf",
        "import tensorflow as tf; import fastertransformer_tf",
    ],
)
def test_a_saved_model_needs_only_the_import(saved: pathlib.Path, imports: str) -> None:
    code = f"model = tf.saved_model.load({str(saved)!r}); print(model.encode(tf.ones([1, 2, 8])))"
    assert "shape=(1, 2, 8)" in output(f"{imports}\n{code}")


def test_a_library_that_cannot_be_loaded_leaves_tensorflow_alone() -> None:
    result = run(
        "import fastertransformer_tf, tensorflow\n"
        "print(tensorflow.constant(3).numpy())\n"
        "fastertransformer_tf.bert_encoder",
        FT_TF_OPS_LIBRARY="/none.so",
    )
    assert result.stdout.strip() == "3"
    warning = next(line for line in result.stderr.splitlines() if "OpsNotLoadedWarning" in line)
    assert "no op library at /none.so" in warning
    assert "models with its ops cannot be loaded" in warning
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastertransformer_tf: no op library at /none.so")


def test_names_that_are_not_loaded_yet_are_listed() -> None:
    code = "import fastertransformer_tf as f; print(set(f.__all__) <= set(dir(f)), f.spec.__name__)"
    assert output(code) == "True fastertransformer_tf.spec"
    result = run("import fastertransformer_tf; fastertransformer_tf.bert_decoder")
    assert "has no attribute 'bert_decoder'" in result.stderr.strip().splitlines()[-1]
