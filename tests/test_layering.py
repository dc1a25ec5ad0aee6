"""What each layer of the C++ code may include: core <- cpu, cuda <- op; TensorFlow in op alone."""

from __future__ import annotations

import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TF_OPS = REPOSITORY / "tf_ops"
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)

TENSORFLOW = re.compile(r"^(tensorflow|tsl|xla|absl|unsupported/Eigen|Eigen|google/protobuf)/")
CUDA_LIBRARY = re.compile(r"^(cuda|cublas|cudnn|cub/|thrust/|mma\.h|driver_types|cutlass/)")

# layer -> (layers of ours it may include, may it include TensorFlow, CUDA's headers)
RULES = {
    "core": ({"core"}, False, False),
    "cpu": ({"core", "cpu"}, False, False),
    "cuda": ({"core", "cuda"}, False, True),
    "op": ({"core", "cpu", "cuda", "op"}, True, True),
}


def violations(layer: str, text: str) -> list[str]:
    """Returns the includes of `text` that a file of `layer` may not have."""
    ours, tensorflow, cuda = RULES[layer]
    found = []
    for path in INCLUDE.findall(text):
        parts = path.split("/")
        if parts[0] == "tf_ops":
            allowed = len(parts) > 1 and parts[1] in ours
        elif TENSORFLOW.match(path):
            allowed = tensorflow
        elif CUDA_LIBRARY.match(path):
            allowed = cuda
        else:
            allowed = True
        if not allowed:
            found.append(path)
    return found


def sources(layer: str) -> list[pathlib.Path]:
    """Lists the C++ and CUDA files of a layer."""
    return sorted(p for p in (TF_OPS / layer).rglob("*") if p.suffix in SUFFIXES)


@pytest.mark.parametrize("layer", sorted(RULES))
def test_layer_includes_only_what_it_may(layer: str) -> None:
    files = sources(layer)
    assert files, f"no sources in tf_ops/{layer}"
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
    ],
)
def test_the_check_sees(layer: str, include: str) -> None:
    assert len(violations(layer, f"#include <vector>\n{include}\n")) == 1
