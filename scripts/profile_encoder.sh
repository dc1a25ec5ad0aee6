#!/bin/bash
# Times transformers' traced encoder, the op under PyTorch and the op without padding over batch 1/8/32 x length
# 32/128/384 and writes one Markdown table for each precision to pytorch-bert-base-log-<precision>/all-log.log.
#   PRECISIONS="fp16 fp32" BATCHES="1 8 32" SEQS="32 128 384" ITERATIONS=100 scripts/profile_encoder.sh
# Environment: FT_PYTHON as in build_torch.sh; INT8_MODE: the op with int8 kernels, 1 or 2
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
source "$repo/scripts/lib.sh"
source "$repo/scripts/profile_lib.sh"

run_sample() {
  local flag=()
  if [ "$1" != fp32 ]; then flag=(--"$1"); fi
  "$FT_PYTHON" "$repo/sample/pytorch/encoder_sample.py" "$2" 12 "$3" 12 64 --time "${flag[@]}" --int8_mode "$4" \
    --iterations "${ITERATIONS:-100}"
}

# Field 5 of the last three lines is the time: HuggingFace, FT, EFF-FT.
read_times() { tail -n 3 "$1" | awk '{ print $5 }'; }

profile_encoders pytorch-bert-base-log HF pytorch
