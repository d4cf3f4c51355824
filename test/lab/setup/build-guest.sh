#!/usr/bin/env bash
# build-guest.sh CACHE: kernel and initramfs of the lab's guest, from Debian packages (cloud kernel, busybox).
# Rebuilt when the kernel package, busybox or the guest's files change. Leaves CACHE/guest/{vmlinuz,initrd.gz}, and initrd-agent.gz:
# the same with qemu-ga and what it needs to freeze an ext4 (started by the command start-agent).
set -euo pipefail
cache="$1"
guest="$(cd "$(dirname "$0")/../guest" && pwd)"

wanted="$(cat "$guest"/* "$guest-agent"/* /bin/busybox "$0" | sha256sum | cut -c1-16)"
[ "$(cat "$cache/guest/.built-from" 2>/dev/null)" = "$wanted" ] && exit 0
echo "building the lab's guest image in $cache/guest"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
[ -n "$(apt-cache depends linux-image-cloud-amd64 2>/dev/null)" ] || apt-get update -qq
package="$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2 }')"
apt-get download -qq -o APT::Sandbox::User=root "$package" qemu-guest-agent
dpkg -x "$package"*.deb kernel
dpkg -x qemu-guest-agent*.deb unpacked

mkdir -p root/bin root/dev root/proc root/sys root/tmp root/lib root/mnt
cp /bin/busybox root/bin/
cp "$guest/init" root/init
cp "$guest/lab" root/bin/lab
chmod 755 root/init root/bin/lab
modules="$(echo kernel/lib/modules/*/kernel)"
# In the order in which init loads them.
for module in drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev \
  drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci drivers/block/virtio_blk \
  drivers/virtio/virtio_balloon net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
  cp "$modules/$module.ko" root/lib/
  echo "$(basename "$module").ko" >>root/lib/order
done
mkdir -p "$cache/guest"
(cd root && find . | LC_ALL=C sort | cpio -o -H newc 2>/dev/null | gzip -n -1) >"$cache/guest/initrd.gz"

mkdir -p agent/bin agent/lib/agent agent/lib64
cp "$guest-agent/start-agent" unpacked/usr/sbin/qemu-ga agent/bin/
chmod 755 agent/bin/*
ldd agent/bin/qemu-ga | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "agent$(dirname "$library")" && cp -L "$library" "agent$library"
done
# ext4 is built in.
cp "$modules/drivers/char/virtio_console.ko" agent/lib/agent/
(cd agent && find . | LC_ALL=C sort | cpio -o -H newc 2>/dev/null | gzip -n -1) | cat "$cache/guest/initrd.gz" - >"$cache/guest/initrd-agent.gz"
cp kernel/boot/vmlinuz-* "$cache/guest/vmlinuz"
echo "$wanted" >"$cache/guest/.built-from"
