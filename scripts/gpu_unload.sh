# Source this on the GPU machine: source scripts/gpu_unload.sh FOLDER [tf]   (files of gpu_load.sh's folders)
# Checks the files, unpacks TensorFlow (sets PYTHONPATH, LD_LIBRARY_PATH) and, unless "tf" is given, the acceptance
# data (FT_TEST_DATA).
_ft_load=$(cd "$1" && pwd) || return 1
_ft_whole() {
  local want
  want=$(sed -n "s/ \+$1\$//p" "$_ft_load/SHA256")
  [ "$(cat "$_ft_load/$1".[0-9][0-9] | sha256sum | cut -d' ' -f1)" = "$want" ] && return
  echo "gpu_unload: $1.* in $_ft_load are incomplete or damaged:" "$_ft_load/$1".* >&2
  return 1
}
if [ "${2:-}" != tf ] && [ ! -d /tmp/ft_data/squad ]; then
  _ft_whole data || return 1
  (
    cd "$_ft_load" || exit 1
    cat data.[0-9][0-9] > data.tar.zst
    python3 - <<'P'
import tarfile

import pyarrow

stream = pyarrow.CompressedInputStream(pyarrow.OSFile("data.tar.zst"), "zstd")
tarfile.open(fileobj=stream, mode="r|").extractall("/tmp/ft_data", filter="data")
P
  ) || return 1
fi
if [ ! -d /tmp/site/tensorflow ]; then
  _ft_whole tf || return 1
  source "$_ft_load/unpack.sh" "$_ft_load" || return 1
  declare -p LD_LIBRARY_PATH PYTHONPATH TF_CPP_MIN_LOG_LEVEL > /tmp/ft_environment
else
  # A later command on the same machine.
  source /tmp/ft_environment
fi
export FT_TEST_DATA=/tmp/ft_data
