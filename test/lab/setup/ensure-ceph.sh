#!/usr/bin/env bash
# Installs the programs of a small Ceph cluster, its object gateway and QEMU's driver for it, for test/lab/rbd.test.ts
# and test/lab/s3*.test.ts: Debian packages, 60 MB to download, 220 MB on the disk, half a minute.
# --check installs nothing.
# Starts nothing; the test runs a cluster of its own in a temporary folder.
# Exit status 1, with the reason on stderr, where they are missing or cannot be had.
set -euo pipefail

packages=(ceph-mon ceph-osd ceph-common qemu-block-extra radosgw)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "${1:-}" = --check ] || [ "$(id -u)" != 0 ]; then
  echo "no ${missing[*]} here; this installs it: sudo bash test/lab/setup/ensure-ceph.sh" >&2
  exit 1
fi
echo "installing Debian packages: ${missing[*]}"
apt=(apt-get -qq -o DPkg::Lock::Timeout=600)
if ! { "${apt[@]}" update && DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } >/dev/null; then
  echo "the packages ${missing[*]} cannot be installed" >&2
  exit 1
fi
