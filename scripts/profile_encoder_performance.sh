#!/bin/bash
# Times TensorFlow, the op and the op without padding over batch 1/8/32 x length 32/128/384 and
# writes one Markdown table for each precision to bert-base-log-<precision>/all-log.log.
#   PRECISIONS="fp16 fp32" BATCHES="1 8 32" SEQS="32 128 384" ITERATIONS=50 scripts/profile_encoder_performance.sh
# Environment: FT_PYTHON as in build.sh; INT8_MODE: the op with int8 kernels, 1 or 2
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
source "$repo/scripts/lib.sh"
source "$repo/scripts/profile_lib.sh"

run_sample() {
  NVIDIA_TF32_OVERRIDE=0 "$FT_PYTHON" "$repo/sample/encoder_sample.py" -batch "$2" -s "$3" -time 1 -d "$1" \
    -int8_mode "$4" -iterations "${ITERATIONS:-50}"
}

# Field 11 of a timing line is the time; the lines are TF, FT, EFF.
read_times() { awk '/ precision / { print $11 }' "$1"; }

profile_encoders bert-base-log TF tf
