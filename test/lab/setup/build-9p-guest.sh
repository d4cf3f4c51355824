#!/usr/bin/env bash
# build-9p-guest.sh CACHE: the lab's guest with 9p, which Debian's cloud kernel has not: on Debian's full kernel, with its drivers.
# 70 MB to download, unless the Xen lab has fetched that kernel. Rebuilt when the lab's guest is. Leaves CACHE/guest-9p/{vmlinuz,initrd.gz}.
set -euo pipefail
cache="$1"
out="$cache/guest-9p"

wanted="$(cat "$cache/guest/.built-from" "$0" | sha256sum | cut -c1-16)"
[ "$(cat "$out/.built-from" 2>/dev/null)" = "$wanted" ] && exit 0
echo "building the lab's guest with 9p in $out"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
deb="$(find "$cache/xen/debs/archives" -name 'linux-image-*-amd64_*.deb' ! -name '*-cloud-*' -print -quit 2>/dev/null || true)"
if [ -z "$deb" ]; then
  [ -n "$(apt-cache depends linux-image-amd64 2>/dev/null)" ] || apt-get update -qq
  apt-get download -qq -o APT::Sandbox::User=root "$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2 }')"
  deb="$(echo "$work"/linux-image-*.deb)"
fi
mkdir kernel root
# Some modules of some thousand.
dpkg-deb --fsys-tarfile "$deb" | tar -x -C kernel --wildcards './boot/vmlinuz-*' '*/drivers/virtio/*' '*/fs/netfs/*' '*/fs/fscache/*' '*/fs/9p/*' '*/net/9p/*'
(cd root && gunzip -c "$cache/guest/initrd.gz" | cpio -idm --quiet)
rm root/lib/*
modules="$(echo kernel/lib/modules/*/kernel)"
# In the order in which init loads them.
for module in drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci_modern_dev \
  drivers/virtio/virtio_pci fs/netfs/netfs fs/fscache/fscache net/9p/9pnet net/9p/9pnet_virtio fs/9p/9p; do
  cp "$modules/$module.ko" root/lib/
  echo "$(basename "$module").ko" >>root/lib/order
done
mkdir -p "$out"
(cd root && find . | LC_ALL=C sort | cpio -o -H newc 2>/dev/null | gzip -n -1) >"$out/initrd.gz"
cp kernel/boot/vmlinuz-* "$out/vmlinuz"
echo "$wanted" >"$out/.built-from"
