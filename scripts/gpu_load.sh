#!/bin/bash
# Cuts what a GPU machine without a network needs beside the bundle (scripts/gpu_bundle.sh) into folders that
# each fit one transfer: TENSORFLOW_DIR holds part_*/tf.NN, deps/deps.tar: TensorFlow and what it needs, in parts.
# Usage: gpu_load.sh TENSORFLOW_DIR DATA_DIR UNPACK_SH OUT_DIR [MIB (62)]
# Writes OUT_DIR/00, OUT_DIR/01, ... On the GPU machine: copy every folder's files into one folder, then
# `source scripts/gpu_unload.sh FOLDER`.
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
fi
tensorflow=$1 data=$2 unpack=$3 out=$4 room=$(( ${5:-62} << 20 ))
rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat "$tensorflow"/part_*/tf.[0-9][0-9] > "$work/tf"
# Weights are noise to a compressor: a high level gains 2 % for 20 times the time.
tar cf - -C "$data" minilm_mrpc minilm_squad glue_data/MRPC/dev.tsv squad/eval-v1.1.json |
  zstd -q -3 > "$work/data"
folder=0 free=$room
next_folder() {
  folder=$((folder + 1)) free=$room
}
for name in tf data; do
  size=$(stat -c %s "$work/$name") at=0 chunk=0
  while [ $at -lt "$size" ]; do
    [ $free -gt 0 ] || next_folder
    take=$((size - at < free ? size - at : free))
    place=$out/$(printf %02d $folder)
    mkdir -p "$place"
    dd if="$work/$name" of="$place/$name.$(printf %02d $chunk)" bs=1M iflag=skip_bytes,count_bytes \
      skip=$at count=$take status=none
    at=$((at + take)) chunk=$((chunk + 1)) free=$((free - take))
  done
  if [ $name = tf ]; then
    cp "$tensorflow/deps/deps.tar" "$unpack" "$place/"
    free=$((free - $(stat -c %s "$tensorflow/deps/deps.tar")))
  fi
done
# Beside the end of TensorFlow, so that it can be unpacked without the data.
(cd "$work" && sha256sum tf data) > "$(dirname "$(ls "$out"/*/deps.tar)")/SHA256"
du -m --apparent-size "$out"/*
