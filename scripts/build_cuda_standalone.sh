#!/bin/bash
# Builds cuda_test, encoder_sample and encoder_gemm with nvcc and g++ alone: no TensorFlow, no Bazel.
# Usage: build_cuda_standalone.sh [OUT_DIR (build/cuda)]
# Environment: CUDA_HOME (/usr/local/cuda), FT_CUDA_ARCHS ("75 80 86 89 90", plus PTX of the last),
# FT_PYTHON (build.sh), CUBLAS_INCLUDE (folder of cublasLt.h; default: CUDA_HOME's, else the TensorFlow wheel's),
# CUTLASS_HOME (folder with include/cutlass of version 4.2; default: FT_PYTHON's package nvidia-cutlass; needed
# for architecture 90 alone), JOBS (2).
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/cuda}")
cuda=${CUDA_HOME:-/usr/local/cuda}
archs=${FT_CUDA_ARCHS:-75 80 86 89 90}
if [ -z "${CUBLAS_INCLUDE:-}" ] && [ ! -e "$cuda/include/cublasLt.h" ]; then
  source scripts/lib.sh
  wheel=$("$FT_PYTHON" -c 'import importlib.util as u; print(u.find_spec("tensorflow").submodule_search_locations[0])')
  # Only cuBLAS's own headers: the wheel's other CUDA headers are of another version.
  mkdir -p "$out/include"
  cp "$wheel"/include/third_party/gpus/cuda/include/cublas*.h "$out/include/"
  CUBLAS_INCLUDE=$out/include
fi
includes="-I. -I$cuda/include ${CUBLAS_INCLUDE:+-I$CUBLAS_INCLUDE}"
codes="" last=""
for a in $archs; do codes+=" -gencode=arch=compute_$a,code=sm_$a"; last=$a; done
codes+=" -gencode=arch=compute_$last,code=compute_$last"
# wgmma exists on sm_90a alone.
wgmma_codes=" -gencode=arch=compute_90a,code=sm_90a"
cutlass="" skip=hopper_
if [[ " $archs " = *" 90 "* ]]; then
  source scripts/lib.sh
  home=${CUTLASS_HOME:-$("$FT_PYTHON" tf_ops/bazel/find_cutlass.py)}
  # Asserts would make ptxas put the wgmma instructions one behind the other; GDC: launches that overlap.
  cutlass="-DNDEBUG -DCUTLASS_ENABLE_GDC_FOR_SM90 --expt-relaxed-constexpr -isystem $home/include -isystem $home/tools/util/include"
  includes+=" -DFT_WITH_CUTLASS" skip=none
fi
mkdir -p "$out/obj"
export out includes codes wgmma_codes cuda cutlass
compile() {
  local object=$out/obj/$(echo "$1" | tr / _).o
  case $1 in
    */hopper_*.cu) "$cuda/bin/nvcc" -std=c++17 -O3 -I. $cutlass $wgmma_codes -Xcompiler -fPIC,-fvisibility=hidden -c "$1" -o "$object" ;;
    */wgmma_*.cu) "$cuda/bin/nvcc" -std=c++17 -O3 -I. $wgmma_codes -Xcompiler -fPIC,-fvisibility=hidden -c "$1" -o "$object" ;;
    *.cu) "$cuda/bin/nvcc" -std=c++17 -O3 -I. $codes -Xcompiler -fPIC,-fvisibility=hidden -c "$1" -o "$object" ;;
    *) g++ -std=c++17 -O3 -Wall -fPIC -fvisibility=hidden -fopenmp $includes -c "$1" -o "$object" ;;
  esac
}
export -f compile
sources=$(find tf_ops/core tf_ops/cuda -path tf_ops/cuda/tools -prune -o \( -name '*.cc' -o -name '*.cu' \) -print | grep -v "/$skip" | sort)
printf '%s\n' $sources tf_ops/cuda/tools/encoder_gemm.cc tf_ops/cuda/tools/encoder_sample.cc tests/cuda_test.cc |
  xargs -P "${JOBS:-2}" -I{} bash -c 'compile {}'
objects=$(for s in $sources; do echo "$out/obj/$(echo "$s" | tr / _).o"; done)
libs="-static-libstdc++ -static-libgcc -fopenmp -L$cuda/lib64 -L$cuda/lib -lcudart_static -ldl -lrt -lpthread"
for main in tf_ops/cuda/tools/encoder_gemm tf_ops/cuda/tools/encoder_sample tests/cuda_test; do
  g++ "$out/obj/$(echo $main.cc | tr / _).o" $objects $libs -o "$out/$(basename $main)"
done
ls -l "$out"/encoder_gemm "$out"/encoder_sample "$out"/cuda_test
