#!/bin/bash
# Evaluates MRPC in PyTorch, in one of three ways, and prints accuracy and F1.
# Usage: run_mrpc.sh ori|ths|thsext fp32|fp16|bf16 [flags of sample/pytorch/run_glue.py]
#        ori: transformers; ths: TorchScript of it; thsext: the op
# Environment: FT_PYTHON as in build_torch.sh; MODEL: a Hugging Face folder or a checkpoint of TensorFlow, and
#              DATA_DIR, by default minilm_mrpc and glue_data/MRPC of FT_TEST_DATA (../shared/data)
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
source "$repo/scripts/lib.sh"
source "$repo/scripts/run_lib.sh"
exec "$FT_PYTHON" "$repo/sample/pytorch/run_glue.py" --do_eval --model_type="$model_type" --data_type="$data_type" \
  --task_name=MRPC --model_name_or_path="${MODEL:-$data/minilm_mrpc}" --data_dir="${DATA_DIR:-$data/glue_data/MRPC}" \
  --max_seq_length=128 --per_gpu_eval_batch_size=8 --output_dir="mrpc_${model_type}_$data_type" "$@"
