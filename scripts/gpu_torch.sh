#!/bin/bash
# fastertransformer_torch on a GPU: its tests, then times beside PyTorch's own ways. `pack` prepares, where there is
# a network, what a GPU machine with CUDA's PyTorch may lack.
# Usage: gpu_torch.sh pack [DIR (.gpu/torch)]    the library with CUDA, and transformers and what it needs, into DIR
#        gpu_torch.sh [PART ...]                 parts: tests times full tuned; default tests and times
#        tests  tests/pytorch/test_torch_cuda.py
#        times  nine shapes in float16, half of each sequence padding, every engine but max-autotune
#        full   the same without padding
#        tuned  as times, by torch.compile with max-autotune, beside ours, as far as the limit allows
# Environment: FT_PYTHON as in build_torch.sh; FT_TORCH_GPU: DIR; OUT: folder for logs and results
#              (gpu_torch_results); FT_GPU_LIMIT: seconds that a part may take (400); FT_GPU_PYTHON_VERSION: of the
#              GPU machine, to pack (3.12); FT_CUDA_ARCHS
# Exit code 1 if anything failed or was cut off.
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh
folder=$(realpath -m "${FT_TORCH_GPU:-.gpu/torch}")

if [ "${1:-}" = pack ]; then
  set -e
  folder=$(realpath -m "${2:-$folder}")
  mkdir -p "$folder"
  FT_CUDA=1 scripts/build_torch.sh
  library=torch_ops/fastertransformer_torch/lib/_fastertransformer_torch.so
  # The CPU build has the same name.
  if ! readelf -SW $library | grep -q '\.nv_fatbin'; then
    echo "gpu_torch: $library has no GPU code: build it with FT_CUDA=1" >&2
    exit 1
  fi
  cp $library "$folder/"
  work=$(mktemp -d "$folder/.pack.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # What transformers imports, without PyTorch and what comes with it.
  "$FT_PYTHON" -m pip install -q --target "$work" --python-version "${FT_GPU_PYTHON_VERSION:-3.12}" \
    --only-binary=:all: --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --no-deps \
    'transformers==5.17.*' tokenizers 'huggingface_hub<2' safetensors regex pyyaml packaging tqdm absl-py pytest \
    pluggy iniconfig pygments httpx httpcore h11 anyio idna certifi typer click shellingham rich markdown-it-py \
    mdurl filelock
  find "$work" -name __pycache__ -type d -prune -exec rm -rf {} +
  tar cf - -C "$work" . | xz > "$folder/site.tar.xz"
  ls -l "$folder"
  exit
fi

out=$(realpath -m "${OUT:-gpu_torch_results}")
limit=${FT_GPU_LIMIT:-400}
parts=" ${*:-tests times} "
mkdir -p "$out"
path=$PWD:$PWD/torch_ops
if [ -e "$folder/site.tar.xz" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  tar xJf "$folder/site.tar.xz" -C "$site" || exit 1
  path=$path:$site
fi
if [ -e "$folder/_fastertransformer_torch.so" ]; then
  export FT_TORCH_OPS_LIBRARY=$folder/_fastertransformer_torch.so
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
failed=0
# run NAME COMMAND...: under the limit; the log's last lines.
run() {
  local name=$1 code
  shift
  timeout -k 10 "$limit" "$@" > "$out/$name.log" 2>&1
  code=$?
  echo "$name: exit code $code"
  tail -n 40 "$out/$name.log" | cut -c1-300
  [ $code = 0 ] || failed=1
}
# Engines and fills that nobody has timed yet are no reason to miss the others: no row begins late.
times() {
  run "$1" "$FT_PYTHON" -m benchmarks.torch_encoder --device=cuda --dtypes=float16 --models=bert-base \
    --shapes=1x32,8x128,32x384,32x128,8x32,32x32,1x128,1x384,8x384 --fills="$2" --engines="$3" --seconds=4 \
    --threads=4 --budget_seconds=$((limit * 3 / 4)) --output_dir="$out" --name="torch_gpu_$1"
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$FT_PYTHON" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
case $parts in *" tests "*)
  run tests "$FT_PYTHON" -m pytest -q -ra -p no:cacheprovider --durations=5 tests/pytorch/test_torch_cuda.py
  # Without a GPU all are skipped, which is no success.
  grep -q ' passed' "$out/tests.log" || failed=1 ;;
esac
case $parts in *" times "*)
  times times half "eager,torchscript,sdpa,sdpa lengths,compile,ours,ours remove_padding" ;;
esac
case $parts in *" full "*) times full full "eager,torchscript,sdpa,compile,ours" ;; esac
case $parts in *" tuned "*) times tuned half "compile max-autotune,ours,ours remove_padding" ;; esac
exit $failed
