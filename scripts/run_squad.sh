#!/bin/bash
# Answers SQuAD in PyTorch, in one of three ways, and prints exact match and F1.
# Usage: run_squad.sh ori|ths|thsext fp32|fp16|bf16 [flags of sample/pytorch/run_squad.py]
#        ori: transformers; ths: TorchScript of it; thsext: the op
# Environment: FT_PYTHON as in build_torch.sh; MODEL: a Hugging Face folder or a checkpoint of TensorFlow, and
#              PREDICT_FILE, by default minilm_squad and squad/eval-v1.1.json of FT_TEST_DATA (../shared/data)
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
source "$repo/scripts/lib.sh"
source "$repo/scripts/run_lib.sh"
exec "$FT_PYTHON" "$repo/sample/pytorch/run_squad.py" --do_eval --model_type="$model_type" --data_type="$data_type" \
  --model_name_or_path="${MODEL:-$data/minilm_squad}" --predict_file="${PREDICT_FILE:-$data/squad/eval-v1.1.json}" \
  --max_seq_length=384 --per_gpu_eval_batch_size=8 --output_dir="squad_${model_type}_$data_type" "$@"
