#!/bin/bash
# Runs every test that needs a GPU, on a machine that has only a release bundle (scripts/gpu_bundle.sh) and
# Python with TensorFlow and pytest; from a checkout too. All parts run side by side; none stops another.
# Usage: gpu_test.sh [PART ...]      parts: cuda_test sanitizer pytest; default all
# Environment: FT_PYTHON as in build.sh; OUT: folder for gpu_test.log, gpu_test.md and each part's log (gpu_test_results);
#              FT_GPU_TEST_LIMIT: seconds that a part may take (240); FT_TEST_SEED, FT_TEST_DEVICE (tests/)
# Exit code 1 if anything failed or nothing ran. A part cut off by its limit is named, and is not a success.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "${OUT:-gpu_test_results}")
source "$root/scripts/lib.sh"
limit=${FT_GPU_TEST_LIMIT:-240}
bin=$root/bin
[ -d "$bin" ] || bin=$root/build/cuda
parts=" ${*:-cuda_test sanitizer pytest} "
# As they run: what has ended is there even if the whole is killed.
logs=$out/parts
rm -rf "$logs"
mkdir -p "$logs"
cd "$root"
export FT_CUDA_TEST=$bin/cuda_test TF_FORCE_GPU_ALLOW_GROWTH=true TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

# start NAME COMMAND...: runs it in the background under the limit; its state goes to NAME.state.
jobs_started=()
start() {
  local name=$1
  shift
  jobs_started+=("$name")
  (
    begin=$(date +%s)
    timeout -k 10 "$limit" "$@" > "$logs/$name.log" 2>&1
    code=$?
    case $code in
      0) state=ok ;;
      77) state=skipped ;;
      124 | 137) state="cut off" ;;
      *) state="FAILED ($code)" ;;
    esac
    echo "$state|$(($(date +%s) - begin))" > "$logs/$name.state"
  ) &
}

# The float64 references are what takes the time; the cores are shared out.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=passive
case $parts in *" cuda_test "*)
  # What has each kernel once is for the sanitizer.
  for part in $("$bin/cuda_test" list | grep -v 'kernels*$'); do
    threads=2
    case $part in *layers | *gemm) threads=6 ;; esac
    start "cuda_test.$part" env OMP_NUM_THREADS=$threads "$bin/cuda_test" $part
  done ;;
esac
case $parts in *" pytest "*)
  # Only files with GPU tests, so that a package which other tests need may be missing.
  files=$(grep -lE 'mark\.gpu' tests/test_*.py)
  # test_gpu.py runs cuda_test, whose parts run on their own here.
  case $parts in *" cuda_test "*) files=$(echo "$files" | grep -v test_gpu.py) ;; esac
  options=""
  "$FT_PYTHON" -c 'import xdist' 2>/dev/null && options="-n 4 --dist worksteal"
  "$FT_PYTHON" -c 'import pytest_timeout' 2>/dev/null && options+=" --timeout=100"
  # -v: what has passed is in the log even if the limit cuts the rest off.
  start pytest.gpu "$FT_PYTHON" -m pytest -v -ra -p no:cacheprovider $options --durations=10 -m gpu $files
  ;;
esac
case $parts in *" sanitizer "*)
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck; do
      for part in padding layer_norm attention attention_projection wgmma layers half_kernels split_kernels int8_kernels fp8_kernels norm_kernels; do
        # racecheck follows every access to shared memory: all layers would only be cut off.
        [ $tool.$part = racecheck.layers ] && part=each_kernel
        start "$tool.$part" nice -n 10 compute-sanitizer --tool $tool --error-exitcode 99 "$bin/cuda_test" $part
      done
    done
  else
    echo "skipped|0" > "$logs/sanitizer.state"
    echo "no compute-sanitizer on this machine" > "$logs/sanitizer.log"
    jobs_started+=(sanitizer)
  fi ;;
esac
wait

failed=0 passed=0
{
  echo "# GPU tests, $(date -u +%FT%TZ)"
  echo
  cat VERSION 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
  echo
  echo "| part | state | s | last line |"
  echo "|---|---|---|---|"
} > "$out/gpu_test.md"
: > "$out/gpu_test.log"
for name in "${jobs_started[@]}"; do
  IFS='|' read -r state seconds < "$logs/$name.state"
  case $state in
    ok) passed=$((passed + 1)) ;;
    skipped) ;;
    *) failed=$((failed + 1)) ;;
  esac
  last=$(grep -v '^ *$' "$logs/$name.log" | tail -n 1 | tr '|' '/' | cut -c1-100)
  echo "| $name | $state | $seconds | $last |" >> "$out/gpu_test.md"
  # The lines that matter; a log of a sanitizer that found a lot is cut.
  { echo "=================== $name: $state"; tail -c 1000000 "$logs/$name.log"; } >> "$out/gpu_test.log"
done
for name in "${jobs_started[@]}"; do
  case $(cat "$logs/$name.state") in
    ok* | skipped*) ;;
    *)
      echo "--- $name"
      grep -E '^(FAILED|ERROR)|Error|error|Invalid|Race' "$logs/$name.log" | head -n 12 | cut -c1-200
      ;;
  esac
done
cat "$out/gpu_test.md"
echo "$passed passed, $failed failed or cut off"
[ $failed = 0 ] && [ $passed -gt 0 ]
