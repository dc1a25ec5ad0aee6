#!/bin/bash
# Checks style and types: ruff, mypy, vermin (nothing newer than Python 3.10) and clang-format.
# Usage: lint.sh
# Environment: FT_PYTHON as in build.sh. The tools get the versions of the extra `lint` of pyproject.toml.
# Exit code 1 where one of them finds something; all of them run.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh lint
source scripts/lib.sh
tools=$("$FT_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
mapfile -t sources < <(find tf_ops torch_ops tests benchmarks -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')
failed=()
check() {
  local name=$1
  shift
  echo "[lint] $name"
  "$@" || failed+=("$name")
}
check "ruff check" "$tools/ruff" check -q .
check "ruff format" "$tools/ruff" format -q --check .
check mypy "$tools/mypy"
# tomllib is imported only where there is one.
check vermin "$tools/vermin" -q -t=3.10- --no-tips --violations --eval-annotations \
  --backport typing_extensions --exclude tomllib fastertransformer_tf torch_ops sample benchmarks tests setup.py
check clang-format "$tools/clang-format" --dry-run -Werror "${sources[@]}"
if [ ${#failed[@]} -gt 0 ]; then
  echo "[lint] FAILED: ${failed[*]}" >&2
  exit 1
fi
echo "[lint] all clean"
