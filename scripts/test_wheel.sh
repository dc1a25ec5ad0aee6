#!/bin/bash
# Installs a wheel into a new environment, without compiler and Bazel, and runs the self-test that it brings.
# Usage: test_wheel.sh WHEEL [PYTHON (python3)]
set -euo pipefail
wheel=$(realpath "$1") python=${2:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check "$wheel"
cd "$work"  # Away from the checkout, whose package would be found first.
PATH=$work/venv/bin TF_CPP_MIN_LOG_LEVEL=3 "$work/venv/bin/python" -m fastertransformer_tf.self_test
