# Sourced by the other scripts: which Python they all use, and what builds have in common.
# FT_PYTHON where it is set, else the checkout's .venv/bin/python where it is there, else python3.
if [ -z "${FT_PYTHON:-}" ]; then
  FT_PYTHON=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python
  if [ ! -x "$FT_PYTHON" ]; then FT_PYTHON=$(command -v python3); fi
fi
export FT_PYTHON

# Installs Bazel where it is missing.
need_bazel() {
  if command -v bazel >/dev/null; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "[build] apt-get install bazel-bootstrap"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bazel-bootstrap >/dev/null
  else
    echo "[build] no bazel on PATH: apt-get install bazel-bootstrap" >&2
    exit 1
  fi
}

# install_library FILE FOLDER: puts a built library into a package, by a rename, so that a process that has the old
# one mapped keeps it.
install_library() {
  local target temporary
  target=$2/$(basename "$1")
  mkdir -p "$2"
  temporary=$(mktemp "$2/.build.XXXXXX")
  # shellcheck disable=SC2064 (now, while the variable is there)
  trap "rm -f '$temporary'" EXIT
  cp "$1" "$temporary"
  chmod 755 "$temporary"
  mv "$temporary" "$target"
  trap - EXIT
  echo "[build] $target: $(stat -c %s "$target") bytes"
}
