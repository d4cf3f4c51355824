#!/usr/bin/env bash
# Builds what has changed: the kernels only when a file of theirs or a package is newer than they are, TypeScript by its own records, and the
# command out of both.
set -euo pipefail
cd "$(dirname "$0")/.."
kernels=dist/src/kernels/kernels.wasm
if [ ! -e "$kernels" ] || [ -n "$(find src/kernels/assembly package-lock.json -newer "$kernels" -print -quit)" ]; then
  npm run --silent build:kernels
fi
npm run --silent build:ts
npm run --silent build:bundle
