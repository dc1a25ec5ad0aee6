#!/bin/bash
# Builds the library with the ops for PyTorch and puts it into torch_ops/fastertransformer_torch/lib.
# Usage: build_torch.sh [bazel options]
# Environment: FT_PYTHON   Python with PyTorch 2.10 or later (.venv/bin/python if there, else python3); TensorFlow is
#              not needed. The library runs with later PyTorch releases too.
#              FT_CUDA, FT_CUDA_ARCHS, CUDA_HOME as in build.sh. It loads where PyTorch or the machine has no CUDA
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh
need_bazel
echo "[build] bazel build //:fastertransformer_torch for $FT_PYTHON"
bazel build --jobs="$(nproc)" "$@" //:fastertransformer_torch
install_library bazel-bin/torch_ops/_fastertransformer_torch.so torch_ops/fastertransformer_torch/lib
