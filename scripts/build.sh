#!/bin/bash
# Builds the library with the ops and puts it into fastertransformer_tf/lib.
# Usage: build.sh [bazel options]
# Environment: FT_PYTHON   Python with TensorFlow 2.21 (.venv/bin/python if there, else python3)
#              FT_CUDA     0: CPU kernels only; 1: CUDA or fail; unset: CUDA where a toolkit is found
#              FT_CUDA_ARCHS  compute capabilities of the machine code ("75 80 86 89 90")
#              CUDA_HOME   the toolkit (pip's nvidia/cu13 or /usr/local/cuda where unset)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh
need_bazel
echo "[build] bazel build //:fastertransformer_tf for $FT_PYTHON"
bazel build --jobs="$(nproc)" "$@" //:fastertransformer_tf
install_library bazel-bin/tf_ops/op/_fastertransformer_tf.so fastertransformer_tf/lib
