#!/bin/bash
# profile_encoder.sh with int8 kernels, in both modes: tables in pytorch-bert-base-log-<precision>-int8-v<mode>/.
# The column precision is that of all that is not int8.
#   INT8_MODES="1 2" and the variables of profile_encoder.sh
set -euo pipefail
for mode in ${INT8_MODES:-1 2}; do
  INT8_MODE=$mode bash "$(dirname "$0")/profile_encoder.sh"
done
