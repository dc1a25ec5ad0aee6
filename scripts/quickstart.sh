#!/bin/bash
# Sets everything up, builds, and runs a real BERT with the op and with TensorFlow's own graph.
# Usage: quickstart.sh [arguments of sample/quickstart.py]
# Environment: FT_PYTHON, FT_CUDA as in build.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh minilm
source scripts/lib.sh
scripts/build.sh
echo "[quickstart] sample/quickstart.py"
exec "$FT_PYTHON" sample/quickstart.py "$@"
