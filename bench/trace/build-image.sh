#!/usr/bin/env bash
# build-image.sh CACHE: the workload guest, from Debian packages alone: kernel, initramfs and a root file system image in
# CACHE/workloads/{vmlinuz,initrd.gz,root.img}. Packages are unpacked, never installed: apt resolves them against an empty
# system. Rebuilt when the list of packages or the guest's files change.
set -euo pipefail
cache="$1"
here="$(cd "$(dirname "$0")" && pwd)"
out="$cache/workloads"
packages=(busybox-static redis-server redis-tools python3-minimal sqlite3 gcc libc6-dev zstd gzip nginx-light wrk stress-ng
  linux-image-cloud-amd64)

wanted="$(cat "$here"/guest/* "$0" | sha256sum | cut -c1-16)"
[ "$(cat "$out/.built-from" 2>/dev/null)" = "$wanted" ] && exit 0
missing=()
for tool in gcc:gcc mke2fs:e2fsprogs cpio:cpio dpkg-deb:dpkg; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "Debian packages are missing. Run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "building the workload guest in $out" >&2

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
mkdir -p archives/partial tree initrd
: >status
apt=(apt-get -qq -o APT::Sandbox::User=root -o "Dir::State::status=$work/status" -o "Dir::Cache::archives=$work/archives"
  -o APT::Install-Recommends=0)
[ -n "$(apt-cache show stress-ng 2>/dev/null)" ] || apt-get update -qq
"${apt[@]}" -y --download-only install "${packages[@]}" >/dev/null
for deb in archives/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x -C tree --keep-directory-symlink; done

# What is needed of the kernel goes into the initramfs, in the order in which it is loaded.
modules="$(echo tree/lib/modules/*/kernel)"
mkdir -p initrd/bin initrd/dev initrd/proc initrd/sys initrd/lib initrd/root "$out"
for module in drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev \
  drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci drivers/block/virtio_blk lib/crc16 \
  crypto/crc32c_generic lib/libcrc32c fs/mbcache fs/jbd2/jbd2 fs/ext4/ext4; do
  # What is not there is built in.
  [ -e "$modules/$module.ko" ] || continue
  cp "$modules/$module.ko" initrd/lib/
  echo "$(basename "$module").ko" >>initrd/lib/order
done
cp tree/bin/busybox initrd/bin/
install -m 755 "$here/guest/init" initrd/init
(cd initrd && find . | LC_ALL=C sort | cpio -o -H newc 2>/dev/null | gzip -n -1) >"$out/initrd.gz"
cp tree/boot/vmlinuz-* "$out/vmlinuz"

rm -rf tree/lib/modules tree/boot tree/usr/share/{doc,man,info,locale,lintian,bash-completion} tree/usr/lib/gcc/x86_64-linux-gnu/12/lto1
mkdir -p tree/{proc,sys,dev,tmp,data,run,var/log/nginx,var/lib/nginx}
install -m 755 "$here/guest/main" "$here/guest/workload" "$here/guest/operations" tree/
install -m 644 "$here/guest/heap.py" "$here/guest/nginx.conf" tree/
# No package's scripts have run, so there are no users; nginx asks for root by name.
echo 'root:x:0:0:root:/tmp:/bin/sh' >tree/etc/passwd
echo 'root:x:0:' >tree/etc/group
gcc -O2 -static -o tree/writer "$here/guest/writer.c"
rm -f "$out/root.img"
mke2fs -q -t ext4 -d tree -O ^has_journal -E root_owner=0:0 "$out/root.img" 1G
echo "$wanted" >"$out/.built-from"
