#!/bin/bash
# profile_encoder_performance.sh with int8 kernels, in both modes: tables in
# bert-base-log-<precision>-int8-v<mode>/all-log.log. The column precision is that of all that is not int8.
#   INT8_MODES="1 2" and the variables of profile_encoder_performance.sh
set -euo pipefail
for mode in ${INT8_MODES:-1 2}; do
  INT8_MODE=$mode bash "$(dirname "$0")/profile_encoder_performance.sh"
done
