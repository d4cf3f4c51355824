#!/usr/bin/env bash
# pack.sh BASE SOURCE_ROOT OUTPUT: the base initramfs followed by Cairn as built in SOURCE_ROOT, with what it needs at run time.
set -euo pipefail
base="$1" root="$2" output="$3"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/cairn"
cd "$root"
{
  echo package.json
  find bundle -type f
  find dist/src dist/adapters dist/examples dist/test/golden dist/test/lab dist/test/truth dist/test/support dist/test/fuzz -type f ! -name '*.map' ! -name '*.d.ts' ! -name '*.test.js'
  # The installed packages that Cairn depends on, by npm's own list.
  npm ls --omit=dev --parseable --all 2>/dev/null | sed -n "s|^$(pwd -P)/||p" | while read -r folder; do
    find "$folder" -path "$folder/node_modules" -prune -o -type f -print |
      grep -v -e '\.map$' -e '\.d\.[cm]*ts$' || true
  done
} | sort -u | cpio -o -H newc --quiet 2>/dev/null | (cd "$work/cairn" && cpio -idm --quiet 2>/dev/null)
cp "$base" "$output"
(cd "$work" && find . | LC_ALL=C sort | cpio -o -H newc --quiet 2>/dev/null) >>"$output"
