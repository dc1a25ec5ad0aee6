"""What each layer may use: C++ (core <- cpu, cuda <- op, torch_ops: a framework each), Python."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pathlib
import re
from collections.abc import Iterator

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TF_OPS = REPOSITORY / "tf_ops"
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)

TORCH = re.compile(r"^(torch|ATen|c10)/")
TENSORFLOW = re.compile(r"^(tensorflow|tsl|xla|absl|unsupported/Eigen|Eigen|google/protobuf)/")
CUDA_LIBRARY = re.compile(r"^(cuda|cublas|cudnn|cub/|thrust/|mma\.h|driver_types|cutlass/)")

# layer -> (layers of ours it may include, what else of these it may)
RULES: dict[str, tuple[set[str], set[re.Pattern[str]]]] = {
    "core": ({"core"}, set()),
    "cpu": ({"core", "cpu"}, set()),
    "cuda": ({"core", "cuda"}, {CUDA_LIBRARY}),
    "op": ({"core", "cpu", "cuda", "op"}, {TENSORFLOW, CUDA_LIBRARY}),
    "torch_ops": ({"core", "cpu", "cuda", "torch_ops"}, {TORCH, CUDA_LIBRARY}),
}
# PyTorch's headers that its stable ABI consists of.
STABLE = ("torch/csrc/stable/", "torch/headeronly/")


def violations(layer: str, text: str) -> list[str]:
    """Returns the includes of `text` that a file of `layer` may not have."""
    ours, libraries = RULES[layer]
    found = []
    for path in INCLUDE.findall(text):
        parts = path.split("/")
        if parts[0] == "torch_ops":
            allowed = "torch_ops" in ours
        elif parts[0] == "tf_ops":
            allowed = len(parts) > 1 and parts[1] in ours
        elif TORCH.match(path):
            allowed = TORCH in libraries and path.startswith(STABLE)
        else:
            others = {TENSORFLOW, CUDA_LIBRARY} - libraries
            allowed = not any(library.match(path) for library in others)
        if not allowed:
            found.append(path)
    return found


def sources(layer: str) -> list[pathlib.Path]:
    """Lists the C++ and CUDA files of a layer."""
    folder = REPOSITORY / layer if layer == "torch_ops" else TF_OPS / layer
    return sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES)


@pytest.mark.parametrize("layer", sorted(RULES))
def test_layer_includes_only_what_it_may(layer: str) -> None:
    files = sources(layer)
    assert files, f"no sources of {layer}"
    faults = {
        str(file.relative_to(REPOSITORY)): bad
        for file in files
        if (bad := violations(layer, file.read_text()))
    }
    assert not faults


def test_every_folder_with_sources_has_a_rule() -> None:
    folders = {p.relative_to(TF_OPS).parts[0] for p in TF_OPS.rglob("*") if p.suffix in SUFFIXES}
    assert folders <= set(RULES)


@pytest.mark.parametrize(
    ("layer", "include"),
    [
        ("core", '#include "tensorflow/core/framework/op.h"'),
        ("core", '#include "tf_ops/cpu/encoder.h"'),
        ("core", '#include "tf_ops/cuda/encoder.h"'),
        ("cpu", "#include <cuda_runtime.h>"),
        ("cpu", '#include "tf_ops/cuda/encoder.h"'),
        ("cpu", '# include "absl/strings/str_cat.h"'),
        ("cuda", '#include "tf_ops/cpu/encoder.h"'),
        ("cuda", '#include "tf_ops/op/convert.h"'),
        ("cuda", '#include "xla/stream_executor/stream.h"'),
        ("core", "#include <torch/csrc/stable/tensor.h>"),
        ("op", "#include <c10/core/Device.h>"),
        ("cpu", '#include "torch_ops/call.h"'),
        ("torch_ops", "#include <ATen/ATen.h>"),
        ("torch_ops", "#include <torch/extension.h>"),
        ("torch_ops", '#include "tensorflow/core/framework/op.h"'),
        ("torch_ops", '#include "tf_ops/op/convert.h"'),
    ],
)
def test_the_check_sees(layer: str, include: str) -> None:
    assert len(violations(layer, f"#include <vector>\n{include}\n")) == 1


PACKAGE = REPOSITORY / "fastertransformer_tf"

# Subpackage or module at the top -> those that it may import; itself it always may.
PYTHON_RULES: dict[str, set[str]] = {"errors": set(), "spec": set(), "loading": {"files"}}
PYTHON_RULES["files"] = {"errors", "spec"}
PYTHON_RULES["google_bert"] = {"errors", "files"}
PYTHON_RULES["ops"] = {"loading", "spec"}
PYTHON_RULES["graphs"] = {"errors", "spec"}
PYTHON_RULES["checkpoints"] = {"errors", "spec", "files", "graphs"}
PYTHON_RULES["quantization"] = PYTHON_RULES["checkpoints"] | {"checkpoints"}
PYTHON_RULES["models"] = PYTHON_RULES["quantization"] | {"google_bert", "quantization", "ops"}
PYTHON_RULES["data"] = {"errors", "files", "google_bert", "spec"}
PYTHON_RULES["training"] = PYTHON_RULES["models"] - {"ops"} | {"models"}
PYTHON_RULES["rewriting"] = PYTHON_RULES["models"] | {"models"}
PYTHON_RULES["programs"] = PYTHON_RULES["training"] | {"data", "training", "loading", "rewriting"}
PYTHON_RULES["programs"] |= {"__version__"}
PYTHON_RULES["scaleout"] = PYTHON_RULES["programs"] | {"programs", "text_model"}
PYTHON_RULES["keras_layers"] = PYTHON_RULES["models"] | {"models"}
PYTHON_RULES["self_test"] = {"ops", "spec", "__version__"}
PYTHON_RULES["text_model"] = PYTHON_RULES["programs"] | {"programs"}
PYTHON_RULES["__init__"] = {"errors", "spec", "loading", "ops"}
PYTHON_RULES["__init__"] |= {"keras_layers", "rewriting", "text_model"}
PROGRAM = PYTHON_RULES["quantization"] | {"data", "quantization", "programs", "rewriting"}

# What fastertransformer_torch may use of the package for TensorFlow: what imports none.
TORCH_PACKAGE = REPOSITORY / "torch_ops" / "fastertransformer_torch"
FOR_TORCH = {"errors", "files", "google_bert", "quantization", "spec"}
# What some of its files import in functions alone, which say so where TensorFlow is missing.
FOR_TORCH_LATER = {"loading.py": {"checkpoints"}}

# Only this module imports bert-tensorflow, which needs its stand-ins to be imported at all.
GOOGLE_BERT = "google_bert.py"


def imported(text: str, at_top: bool = False) -> Iterator[str]:
    """Yields the full names of what a module imports, at its top alone or anywhere in it."""
    tree = ast.parse(text)
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def python_violations(file: str, text: str) -> list[str]:
    """Returns the imports of `text` that a file of the package may not have."""
    layer = file.partition("/")[0].removesuffix(".py")
    allowed = PYTHON_RULES.get(layer, PROGRAM) | {layer}
    found = []
    for name in imported(text):
        first, *rest = name.split(".")
        if first == "bert" and file != GOOGLE_BERT:
            found.append(name)
        if first == "fastertransformer_tf" and rest[0] not in allowed:
            found.append(name)
    return found


def test_the_package_for_pytorch_needs_no_tensorflow() -> None:
    files = {file.name: file.read_text() for file in sorted(TORCH_PACKAGE.rglob("*.py"))}
    assert len(files) >= 3
    faults = {file: bad for file, text in files.items() if (bad := torch_violations(text, file))}
    assert not faults
    for file in FOR_TORCH_LATER:
        at_top = {name.split(".")[1] for name in imported(files[file], at_top=True) if "." in name}
        assert not at_top & FOR_TORCH_LATER[file]
    assert torch_violations("from fastertransformer_tf import ops") == ["fastertransformer_tf.ops"]
    assert torch_violations("def f():\n    import tensorflow as tf") == ["tensorflow"]
    graphs = "from fastertransformer_tf.quantization import simulation"
    assert torch_violations(graphs) == ["fastertransformer_tf.quantization.simulation"]


def torch_violations(text: str, file: str = "") -> list[str]:
    """Returns the imports of `text` that a file of the package for PyTorch may not have."""
    found = []
    allowed = FOR_TORCH | FOR_TORCH_LATER.get(file, set())
    for name in imported(text):
        first, *rest = name.split(".")
        if first == "tensorflow" or (first == "fastertransformer_tf" and rest[0] not in allowed):
            found.append(name)
        # Half of that folder is about graphs.
        elif rest[:1] == ["quantization"]:
            module = PACKAGE / "quantization" / f"{rest[1]}.py"
            if "tensorflow" in {name.split(".")[0] for name in imported(module.read_text())}:
                found.append(name)
    return found


def python_files() -> dict[str, str]:
    """The files of the package, by their path in it, and what they hold."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {file.relative_to(PACKAGE).as_posix(): file.read_text() for file in files}


def test_python_layers_import_only_what_they_may() -> None:
    files = python_files()
    assert len(files) > 40
    faults = {file: bad for file, text in files.items() if (bad := python_violations(file, text))}
    assert not faults


def test_every_python_folder_has_a_rule() -> None:
    folders = {file.partition("/")[0] for file in python_files() if "/" in file}
    assert folders <= set(PYTHON_RULES)


def test_the_python_layers_have_an_order() -> None:
    left = {layer: set(allowed) for layer, allowed in PYTHON_RULES.items()}
    while left:
        lowest = {layer for layer, allowed in left.items() if not allowed & left.keys()}
        assert lowest, f"a circle among {sorted(left)}"
        left = {layer: allowed for layer, allowed in left.items() if layer not in lowest}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("files/text_files.py", "from fastertransformer_tf.models import modeling"),
        ("spec.py", "from fastertransformer_tf import ops"),
        ("checkpoints/reading.py", "import fastertransformer_tf.models.bert_compat"),
        (
            "training/loop.py",
            "def f():\n    from fastertransformer_tf.programs.cli import run_program",
        ),
        ("models/modeling.py", "from fastertransformer_tf.import_hf import run"),
        ("import_hf.py", "from fastertransformer_tf.models import modeling"),
        ("quantization/points.py", "from fastertransformer_tf.models import modeling"),
        ("data/glue.py", "from bert import run_classifier"),
        ("data/glue.py", "import bert.modeling"),
    ],
)
def test_the_python_check_sees(file: str, line: str) -> None:
    assert len(python_violations(file, f"import os\n{line}\n")) == 1


@pytest.mark.parametrize("folder", ["sample", "benchmarks", "tests"])
def test_bert_is_imported_through_google_bert_alone(folder: str) -> None:
    for file in sorted((REPOSITORY / folder).glob("*.py")):
        assert not [name for name in imported(file.read_text()) if name.split(".")[0] == "bert"]


def test_what_benchmarks_and_samples_import_exists() -> None:
    """Nothing else runs them all, and most want a machine of their own."""
    missing = []
    for file in sorted(
        path for folder in ("benchmarks", "sample") for path in (REPOSITORY / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.module is None or node.level:
                continue
            if node.module.split(".")[0] != "fastertransformer_tf":
                continue
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                # A name, or a module of a package.
                full = f"{node.module}.{name}"
                is_package = hasattr(module, "__path__")
                if not hasattr(module, name) and not (
                    is_package and importlib.util.find_spec(full)
                ):
                    missing.append(f"{file.name}: {full}")
    assert not missing
