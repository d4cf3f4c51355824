#!/usr/bin/env bash
# What the bench's peers are compiled from and compared with: Debian packages, installed when this is root and one is missing.
set -euo pipefail
missing=()
for package in gcc libc6-dev libzstd-dev liblz4-dev xdelta3; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "Debian packages are missing. Run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing Debian packages: ${missing[*]}" >&2
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
