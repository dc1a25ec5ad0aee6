#!/bin/bash
# Builds a wheel with the library inside, for every Python 3.10 to 3.13, and names the oldest Linux that it runs on.
# Usage: build_wheel.sh [OUT_DIR (dist)]
# Environment: as build.sh, which it calls; needs the packages of the extra `wheel`
#              FT_WHEEL_BUILD=0 takes the library that is built already
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-dist}")
source scripts/lib.sh
[ "${FT_WHEEL_BUILD:-1}" = 0 ] || bash scripts/build.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "[wheel] building"
"$FT_PYTHON" -m build --wheel --no-isolation --outdir "$work/plain" . >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
# Nothing is copied into it: TensorFlow and PyTorch bring their own libraries, and the others are every Linux's.
PATH=$(dirname "$FT_PYTHON"):$PATH "$FT_PYTHON" -m auditwheel repair --exclude 'libtensorflow_framework.so.*' --exclude libtorch_cpu.so --wheel-dir "$work/named" "$work"/plain/*.whl \
  >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
mkdir -p "$out"
for wheel in "$work"/named/*.whl; do
  mv "$wheel" "$out/"
  echo "[wheel] $out/$(basename "$wheel"): $(stat -c %s "$out/$(basename "$wheel")") bytes"
done
