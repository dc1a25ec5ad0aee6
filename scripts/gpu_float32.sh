#!/bin/bash
# float32 on a GPU, by split products and by IEEE arithmetic: kernels and layers against float64, the sanitizer,
# then times. A part that fails is named, and the next one runs all the same.
# Usage: gpu_float32.sh [PART ...]      parts: tests sanitizer times bench; default all
# Environment: OUT: folder for the logs (gpu_float32_results); FT_GPU_TEST_LIMIT: seconds that a program may take (150)
# Exit code 1 if anything failed.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "${OUT:-gpu_float32_results}")
limit=${FT_GPU_TEST_LIMIT:-150}
bin=$root/bin
[ -d "$bin" ] || bin=$root/build/cuda
parts=" ${*:-tests sanitizer times bench} "
mkdir -p "$out"
# run NAME COMMAND...: the log's last line, and the lines of what failed.
run() {
  local name=$1 code begin
  shift
  begin=$(date +%s)
  timeout -k 10 "$limit" "$@" > "$out/$name.log" 2>&1
  code=$?
  echo "$name: exit code $code, $(($(date +%s) - begin)) s: $(tail -n 1 "$out/$name.log" | cut -c1-150)"
  [ $code = 0 ] && return
  echo "$name" >> "$out/failed"
  grep -E '^FAILED|Error|Invalid|hazard|ERROR' "$out/$name.log" | head -n 12 | cut -c1-300
}
rm -f "$out/failed"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
# Times first, while nothing else runs.
case $parts in *" times "*)
  config=$(mktemp -d)
  for ieee in 1 0; do
    export FT_IEEE_FLOAT32=$ieee
    # Batch, length, and the length that tuning sees: half of the last one's is padding, which is removed.
    for sizes in "1 32 32 0" "8 128 128 0" "32 128 128 0" "32 384 384 0" "32 384 192 1"; do
      read -r batch length real packed <<< "$sizes"
      name=${batch}x${length}_packed_${packed}_ieee_$ieee
      sample="$bin/encoder_sample $batch 12 $length 12 64 0 $packed 0"
      run "sample_$name" $sample
      FT_GEMM_CONFIG_DIR=$config run "gemm_$name" "$bin/encoder_gemm" "$batch" "$real" 12 64 0 0
      FT_GEMM_CONFIG_DIR=$config run "sample_${name}_tuned" $sample
    done
  done
  unset FT_IEEE_FLOAT32
  # The kernel for few rows where the rule takes it (-1), nowhere and for all products.
  for length in 16 32; do
    for rows in -1 0 32; do
      FT_SAMPLE_FEW_ROWS=$rows run "sample_1x${length}_few_$rows" "$bin/encoder_sample" 1 12 $length 12 64 0 0 0
    done
  done
  cat "$config"/split_gemm_config.in > "$out/split_gemm_config.in"
  rm -rf "$config" ;;
esac
case $parts in *" bench "*)
  run bench_split "$bin/cuda_test" bench_split
  cat "$out/bench_split.log" ;;
esac
# The rest runs side by side: of the tests the float64 references are what takes the time.
export OMP_WAIT_POLICY=passive
case $parts in *" tests "*)
  for part in split_rows split_gemm split_config split_choices layers layer_norm attention nonfinite ragged \
    graphs gemm_config runner interface int8_attention int8_config; do
    threads=2
    case $part in layers | split_gemm) threads=6 ;; esac
    OMP_NUM_THREADS=$threads run $part "$bin/cuda_test" $part &
  done ;;
esac
case $parts in *" sanitizer "*)
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck; do
      for part in split_kernels each_kernel; do
        OMP_NUM_THREADS=1 run ${tool}_$part nice compute-sanitizer --tool $tool --error-exitcode 99 "$bin/cuda_test" $part &
      done
    done
  else
    echo "no compute-sanitizer on this machine"
  fi ;;
esac
wait
[ ! -e "$out/failed" ]
