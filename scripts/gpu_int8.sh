#!/bin/bash
# INT8 on a GPU, from the smallest part to the whole: each kernel against exact integers, layers against float64,
# the sanitizer, then times. A part that fails is named, and the next one runs all the same.
# Usage: gpu_int8.sh [PART ...]      parts: tests sanitizer times; default all
# Environment: OUT: folder for the logs (gpu_int8_results); FT_GPU_TEST_LIMIT: seconds that a program may take (120)
# Exit code 1 if anything failed.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "${OUT:-gpu_int8_results}")
limit=${FT_GPU_TEST_LIMIT:-120}
bin=$root/bin
[ -d "$bin" ] || bin=$root/build/cuda
parts=" ${*:-tests sanitizer times} "
mkdir -p "$out"
failed=0
# run NAME COMMAND...: the log's last line, and the lines of what failed.
run() {
  local name=$1 code
  shift
  timeout -k 10 "$limit" "$@" > "$out/$name.log" 2>&1
  code=$?
  echo "$name: exit code $code: $(tail -n 1 "$out/$name.log" | cut -c1-150)"
  [ $code = 0 ] && return
  failed=1
  grep -E '^FAILED|Error|Invalid|hazard' "$out/$name.log" | head -n 12 | cut -c1-200
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
case $parts in *" tests "*)
  for part in int8_gemm int8_norm int8_attention int8_kernels int8_layers int8_config; do
    run $part "$bin/cuda_test" $part
  done
  # What the refactoring for INT8 touched.
  for part in layer_norm attention wgmma each_kernel graphs; do
    run $part "$bin/cuda_test" $part
  done ;;
esac
case $parts in *" sanitizer "*)
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
      run $tool compute-sanitizer --tool $tool --error-exitcode 99 "$bin/cuda_test" int8_kernels
    done
    # With the tiles that only many rows get.
    run memcheck_gemm compute-sanitizer --error-exitcode 99 "$bin/cuda_test" int8_gemm
  else
    echo "no compute-sanitizer on this machine"
  fi ;;
esac
case $parts in *" times "*)
  run bench_int8 "$bin/cuda_test" bench_int8
  cat "$out/bench_int8.log"
  for sizes in "1 12 32" "1 12 128" "8 12 128" "8 12 384" "32 12 128" "32 12 384"; do
    for mode in 0 1 2; do
      # shellcheck disable=SC2086
      run "sample_${sizes// /_}_$mode" "$bin/encoder_sample" $sizes 12 64 1 0 $mode
    done
  done ;;
esac
exit $failed
