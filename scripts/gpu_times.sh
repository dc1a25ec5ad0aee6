#!/bin/bash
# Times the CUDA kernels on a GPU, without TensorFlow: the encoder in each type of products, by the rules and tuned,
# then kernels one by one. What fails is named, and the next one runs all the same. (gpu_test.sh tests them.)
# Usage: gpu_times.sh [PART ...]      parts: encoder kernels; default both
# Environment: OUT: folder for the logs (gpu_times_results); FT_GPU_LIMIT: seconds that a program may take (150);
#              FT_GPU_TYPES: of the encoder (fp16 float32 ieee int8_1 int8_2 fp8)
# Exit code 1 if anything failed.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "${OUT:-gpu_times_results}")
limit=${FT_GPU_LIMIT:-150}
bin=$root/bin
[ -d "$bin" ] || bin=$root/build/cuda
parts=" ${*:-encoder kernels} "
mkdir -p "$out"
failed=0
# run NAME COMMAND...: the log's last line.
run() {
  local name=$1 code
  shift
  timeout -k 10 "$limit" "$@" > "$out/$name.log" 2>&1
  code=$?
  echo "$name: exit code $code: $(tail -n 1 "$out/$name.log" | cut -c1-150)"
  [ $code = 0 ] || failed=1
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
case $parts in *" encoder "*)
  config=$(mktemp -d)
  trap 'rm -rf "$config"' EXIT
  for type in ${FT_GPU_TYPES:-fp16 float32 ieee int8_1 int8_2 fp8}; do
    half=1 mode=0
    case $type in
      float32) half=0 ;;
      ieee) half=0 && export FT_IEEE_FLOAT32=1 ;;
      int8_* | fp8) mode=${type#int8_} ;;
    esac
    # Batch, length, and the length that tuning sees: half of the last one's is padding, which is removed.
    for sizes in "1 32 32 0" "1 128 128 0" "8 128 128 0" "32 128 128 0" "32 384 384 0" "32 384 192 1"; do
      read -r batch length real packed <<< "$sizes"
      name=${type}_${batch}x${length}_packed_$packed
      sample=("$bin/encoder_sample" "$batch" 12 "$length" 12 64 $half "$packed" "$mode")
      run "encoder_$name" "${sample[@]}"
      FT_GEMM_CONFIG_DIR=$config run "gemm_$name" "$bin/encoder_gemm" "$batch" "$real" 12 64 $half "$mode"
      FT_GEMM_CONFIG_DIR=$config run "encoder_${name}_tuned" "${sample[@]}"
    done
    unset FT_IEEE_FLOAT32
  done
  tail -n +1 "$config"/*.in > "$out/configs.txt" ;;
esac
case $parts in *" kernels "*)
  for part in bench_attention bench_half bench_split bench_int8; do
    run $part "$bin/cuda_test" $part
    cat "$out/$part.log"
  done ;;
esac
exit $failed
