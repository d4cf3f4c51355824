#!/usr/bin/env bash
# ensure-clean-root.sh CACHE: a bare Debian 12 as an archive, CACHE/clean-root/bookworm.tar; made once, which needs root.
set -euo pipefail
out="$1/clean-root"
[ -f "$out/.complete" ] && exit 0
if [ "$(id -u)" != 0 ]; then
  echo "a clean root is made by root: sudo bash test/lab/setup/ensure-clean-root.sh" >&2
  exit 1
fi
bash "$(dirname "$0")/ensure-packages.sh" mmdebstrap lintian dpkg-dev
echo "making a bare Debian 12 in $out"
mkdir -p "$out"
mmdebstrap --quiet --variant=apt --skip=output/dev bookworm "$out/bookworm.tar"
touch "$out/.complete"
