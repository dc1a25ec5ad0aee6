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
if ! command -v bazel >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "[build] apt-get install bazel-bootstrap"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bazel-bootstrap >/dev/null
  else
    echo "[build] no bazel on PATH: apt-get install bazel-bootstrap" >&2
    exit 1
  fi
fi
echo "[build] bazel build //:fastertransformer_tf for $FT_PYTHON"
bazel build --jobs="$(nproc)" "$@" //:fastertransformer_tf
# By a rename, so that a process that has the old library mapped keeps it.
lib=fastertransformer_tf/lib
mkdir -p $lib
temporary=$(mktemp $lib/.build.XXXXXX)
trap 'rm -f "$temporary"' EXIT
cp bazel-bin/tf_ops/op/_fastertransformer_tf.so "$temporary"
chmod 755 "$temporary"
mv "$temporary" $lib/_fastertransformer_tf.so
echo "[build] $lib/_fastertransformer_tf.so: $(stat -c %s $lib/_fastertransformer_tf.so) bytes"
