# Sourced by the other scripts: which Python they all use.
# FT_PYTHON where it is set, else the checkout's .venv/bin/python where it is there, else python3.
if [ -z "${FT_PYTHON:-}" ]; then
  FT_PYTHON=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python
  if [ ! -x "$FT_PYTHON" ]; then FT_PYTHON=$(command -v python3); fi
fi
export FT_PYTHON
