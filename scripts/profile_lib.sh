# Sourced by profile_encoder_performance.sh and profile_encoder.sh: the loops and the table.

# profile_encoders FOLDER COLUMN LOG_NAME: for each of PRECISIONS, of BATCHES and of SEQS calls
#   run_sample PRECISION BATCH SEQ INT8_MODE    which writes the sample's output to stdout
#   read_times LOG                              which prints the three times of such an output, in milliseconds
# and writes one Markdown table for each precision to FOLDER-<precision>/all-log.log. COLUMN is who the first time is
# of. INT8_MODE: with int8 kernels, 1 or 2.
profile_encoders() {
  local prefix=$1 first=$2 log_name=$3 int8=${INT8_MODE:-0} precision folder table batch seq log times
  for precision in ${PRECISIONS:-fp16 fp32}; do
    folder=$prefix-$precision
    if [ "$int8" != 0 ]; then folder=$folder-int8-v$int8; fi
    mkdir -p "$folder"
    lscpu > "$folder/cpuinfo.txt"
    if command -v nvidia-smi > /dev/null; then nvidia-smi > "$folder/gpuinfo.txt"; fi
    table=$folder/all-log.log
    {
      echo "| B | S | precision | $first ms | FT ms | EFF ms | FT speed-up | EFF speed-up |"
      echo "|---|---|---|---|---|---|---|---|"
    } | tee "$table"
    for batch in ${BATCHES:-1 8 32}; do
      for seq in ${SEQS:-32 128 384}; do
        log=$folder/batchsize-$batch-seq-$seq-$precision-$log_name-log.log
        if ! run_sample "$precision" "$batch" "$seq" "$int8" > "$log" 2> "$log.err"; then
          echo "encoder_sample.py failed for ${batch}x$seq, see $log and $log.err:" >&2
          tail -n 5 "$log.err" >&2
          exit 1
        fi
        times=$(read_times "$log")
        echo "$times" | awk -v b="$batch" -v s="$seq" -v p="$precision" '
          { for (i = 1; i <= NF; ++i) ms[++n] = $i }
          END {
            if (n != 3) { print "expected 3 times, found " n > "/dev/stderr"; exit 1 }
            printf "| %d | %d | %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n",
                   b, s, p, ms[1], ms[2], ms[3], ms[1] / ms[2], ms[1] / ms[3]
          }' | tee -a "$table"
      done
    done
  done
}
