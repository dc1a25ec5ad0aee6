#!/bin/bash
# Times TensorFlow, the op and the op without padding over batch 1/8/32 x length 32/128/384 and
# writes one Markdown table for each precision to bert-base-log-<precision>/all-log.log.
#   PRECISIONS="fp16 fp32" BATCHES="1 8 32" SEQS="32 128 384" ITERATIONS=50 scripts/profile_encoder_performance.sh
# Environment: FT_PYTHON as in build.sh; INT8_MODE: the op with int8 kernels, 1 or 2
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
source "$repo/scripts/lib.sh"
int8=${INT8_MODE:-0}
for precision in ${PRECISIONS:-fp16 fp32}; do
  folder=bert-base-log-$precision
  if [ "$int8" != 0 ]; then folder=$folder-int8-v$int8; fi
  mkdir -p "$folder"
  lscpu > "$folder/cpuinfo.txt"
  if command -v nvidia-smi > /dev/null; then nvidia-smi > "$folder/gpuinfo.txt"; fi
  table=$folder/all-log.log
  {
    echo "| B | S | precision | TF ms | FT ms | EFF ms | FT speed-up | EFF speed-up |"
    echo "|---|---|---|---|---|---|---|---|"
  } | tee "$table"
  for batch in ${BATCHES:-1 8 32}; do
    for seq in ${SEQS:-32 128 384}; do
      log=$folder/batchsize-$batch-seq-$seq-$precision-tf-log.log
      if ! NVIDIA_TF32_OVERRIDE=0 "$FT_PYTHON" "$repo/sample/encoder_sample.py" -batch "$batch" \
          -s "$seq" -time 1 -d "$precision" -int8_mode "$int8" -iterations "${ITERATIONS:-50}" > "$log" 2> "$log.err"; then
        echo "encoder_sample.py failed for ${batch}x$seq, see $log and $log.err:" >&2
        tail -n 5 "$log.err" >&2
        exit 1
      fi
      # Field 11 of a timing line is the time; the lines are TF, FT, EFF.
      awk -v b="$batch" -v s="$seq" -v p="$precision" '
        / precision / { ms[++n] = $11 }
        END {
          if (n != 3) { print "expected 3 times, found " n > "/dev/stderr"; exit 1 }
          printf "| %d | %d | %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n",
                 b, s, p, ms[1], ms[2], ms[3], ms[1] / ms[2], ms[1] / ms[3]
        }' "$log" | tee -a "$table"
    done
  done
done
