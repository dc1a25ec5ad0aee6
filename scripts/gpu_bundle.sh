#!/bin/bash
# Builds the package with CUDA and puts what a GPU machine needs, and nothing else, into one folder: the package
# with its .so, the tests, the C++ programs, sample and benchmarks. No source of the library, no TensorFlow.
# Usage: gpu_bundle.sh [OUT_DIR (.gpu/ft)]      also writes OUT_DIR.tar.xz, a tenth of the size
# On the GPU machine: python3 -m tarfile -e ft.tar.xz ft && ft/scripts/gpu_test.sh
# Environment: FT_PYTHON, CUDA_HOME as in build.sh; FT_CUDA_ARCHS as in build_cuda_standalone.sh;
#              FT_BUNDLE_BUILD=0 takes what is built already
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-.gpu/ft}")
source scripts/lib.sh
library=fastertransformer_tf/lib/_fastertransformer_tf.so
programs="cuda_test encoder_sample encoder_gemm"
if [ "${FT_BUNDLE_BUILD:-1}" != 0 ]; then
  FT_CUDA=1 scripts/build.sh
  scripts/build_cuda_standalone.sh build/cuda
fi
for file in $library $(printf 'build/cuda/%s ' $programs); do
  [ -e "$file" ] || { echo "gpu_bundle: $file is missing: leave FT_BUNDLE_BUILD out" >&2; exit 1; }
done
# The CPU build has the same name: its bundle would skip nothing and test nothing of a GPU.
if ! readelf -SW $library | grep -q '\.nv_fatbin'; then
  echo "gpu_bundle: $library has no GPU code: build it with FT_CUDA=1" >&2
  exit 1
fi
mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$(dirname "$out")/.bundle.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/fastertransformer_tf/lib" "$work/tests" "$work/sample" "$work/benchmarks" "$work/scripts"
find fastertransformer_tf -name "*.py" -exec cp --parents {} "$work" \;
cp $library "$work/fastertransformer_tf/lib/"
for program in $programs; do cp "build/cuda/$program" "$work/bin/"; done
cp tests/*.py "$work/tests/"
cp sample/*.py "$work/sample/"
cp benchmarks/*.py "$work/benchmarks/"
cp scripts/lib.sh scripts/profile_lib.sh scripts/gpu_test.sh scripts/gpu_times.sh \
  scripts/gpu_unload.sh scripts/profile_encoder_performance.sh "$work/scripts/"
cp pyproject.toml README.md LICENSE "$work/"
commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
echo "commit $commit, built $(date -u +%FT%TZ), TensorFlow $("$FT_PYTHON" -c \
  'import importlib.metadata as m; print(m.version("tensorflow"))')" > "$work/VERSION"
chmod 755 "$work"
rm -rf "$out"
mv "$work" "$out"
trap - EXIT
# A window that reaches from one program to the next, which holds the same GPU code.
tar cf - -C "$out" . | xz --lzma2=preset=1,dict=128MiB > "$out.tar.xz.new"
mv "$out.tar.xz.new" "$out.tar.xz"
cat "$out/VERSION"
du -sm --apparent-size "$out" "$out/fastertransformer_tf/lib" "$out/bin" "$out.tar.xz"
