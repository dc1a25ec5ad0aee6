#!/bin/sh
echo "bazel coverage is not available in this workspace: its tools would have to be downloaded" >&2
exit 1
