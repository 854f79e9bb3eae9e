#!/bin/sh
# Fetches libtorch, 0.6 GB, into libtorch/ beside this file, where the programs look for it. Needs python3 with venv.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -e "$here/libtorch" ]; then
  echo "$here/libtorch is there already" >&2
  exit 1
fi
rm -rf "$here/libtorch.partial" "$here/pip"
python3 -m venv "$here/pip"
"$here/pip/bin/pip" install --quiet --no-deps --no-compile --only-binary=:all: --require-hashes \
  --python-version 3.11 --implementation cp @PLATFORMS@ \
  --target "$here/libtorch.partial" --requirement "$here/libtorch.txt"
mv "$here/libtorch.partial" "$here/libtorch"
rm -rf "$here/pip"
