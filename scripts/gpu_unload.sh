# Source this on the GPU machine: source scripts/gpu_unload.sh FOLDER   (the files of gpu_load.sh's folders)
# Checks the files, unpacks TensorFlow (sets PYTHONPATH, LD_LIBRARY_PATH) and the acceptance data (FT_TEST_DATA).
_ft_load=$(cd "$1" && pwd) || return 1
if [ ! -d /tmp/ft_data/squad ]; then
  (
    cd "$_ft_load" || exit 1
    for name in tf data; do
      want=$(sed -n "s/ \+$name\$//p" SHA256)
      [ "$(cat $name.[0-9][0-9] | sha256sum | cut -d' ' -f1)" = "$want" ] ||
        { echo "gpu_unload: $name.* are incomplete or damaged: $(ls $name.*)" >&2; exit 1; }
    done
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
  source "$_ft_load/unpack.sh" "$_ft_load" || return 1
  declare -p LD_LIBRARY_PATH PYTHONPATH TF_CPP_MIN_LOG_LEVEL > /tmp/ft_environment
else
  # A later command on the same machine.
  source /tmp/ft_environment
fi
export FT_TEST_DATA=/tmp/ft_data
