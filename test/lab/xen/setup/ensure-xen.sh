#!/usr/bin/env bash
# Builds the Xen lab from Debian packages: hypervisor, dom0 and guests, all run by QEMU without KVM. Quick when all is there.
# Everything lies in CACHE/xen, outside the source tree; nothing is installed: the packages are only unpacked, with a sources list
# and state folders of their own, so that the set is the same on every host.
#
#     xen.elf        hypervisor (the multiboot image, unpacked)
#     vmlinuz        kernel of dom0 and of the guests
#     boot.initrd    what dom0 needs to mount its disk
#     root.img       dom0's disk: Xen's tools, Node.js, guest images
#
# Exit code 3: the packages cannot be had, with the reason on stderr.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
guest="$(cd "$here/../guest" && pwd)"
cache="${CAIRN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cairn}/lab/xen"
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9

node="$(command -v node)"
wanted="$(cat "$here"/* "$guest"/* "$node" | sha256sum | cut -c1-16)"
[ "$(cat "$cache/.built-from" 2>/dev/null)" = "$wanted" ] && exit 0
command -v mke2fs >/dev/null || { echo 'mke2fs (package e2fsprogs) is missing' >&2; exit 3; }
command -v busybox >/dev/null || { echo 'busybox (package busybox-static) is missing' >&2; exit 3; }

# 1. Packages, with everything they depend on: an empty status file makes apt think that nothing is installed.
debs="$cache/debs"
packages='xen-hypervisor-4.17-amd64 xen-utils-4.17 xenstore-utils qemu-system-xen qemu-utils lvm2 libstdc++6 bash coreutils python3-minimal'
if [ "$(cat "$debs/.complete" 2>/dev/null)" != "$packages" ]; then
  echo "fetching Debian packages for the Xen lab into $debs"
  rm -rf "$debs"
  mkdir -p "$debs/lists/partial" "$debs/archives/partial"
  : >"$debs/status"
  for suite in 'debian bookworm' 'debian bookworm-updates' 'debian-security bookworm-security'; do
    read -r archive name <<<"$suite"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/$archive $name main"
  done >"$debs/sources.list"
  config=(-o "Dir::Etc::sourcelist=$debs/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$debs/lists"
    -o "Dir::State::status=$debs/status" -o "Dir::Cache=$debs" -o "Dir::Cache::archives=$debs/archives" -o APT::Sandbox::User=root)
  {
    apt-get -qq "${config[@]}" update
    kernel="$(apt-cache "${config[@]}" depends linux-image-amd64 | awk '/Depends: linux-image-[0-9]/ { print $2 }')"
    # shellcheck disable=SC2086
    apt-get -qq -y "${config[@]}" --download-only --no-install-recommends install $packages "$kernel"
  } >"$debs/log" 2>&1 || { tail -3 "$debs/log" >&2; echo 'the Debian packages of the Xen lab cannot be fetched' >&2; exit 3; }
  echo "$packages" >"$debs/.complete"
fi

echo "building the Xen lab in $cache"
work="$(mktemp -d "$cache/work.XXXXXX")"
trap 'rm -rf "$work"' EXIT
root="$work/root"
mkdir -p "$root"
for deb in "$debs"/archives/*.deb; do
  case "$(basename "$deb")" in
    iso-codes_* | initramfs-tools* | dpkg_* | debconf_* | adduser_* | passwd_*) continue ;;
  esac
  dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink \
    --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='*.dtb'
done
zcat "$root"/boot/xen-4.17-amd64.gz >"$work/xen.elf"
cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
version="$(basename "$root"/lib/modules/*)"

# 2. dom0's initramfs: the modules for an IDE disk with ext4. What busybox's modprobe needs is made by its depmod.
boot="$work/boot"
mkdir -p "$boot/bin" "$boot/dev" "$boot/proc" "$boot/sys" "$boot/root" "$boot/lib/modules/$version"
cp "$(command -v busybox)" "$boot/bin/busybox"
install -m 755 "$here/boot-init" "$boot/init"
modules="$root/lib/modules/$version/kernel"
copy_modules() { # DEST NAME...: the modules and what they depend on; names have underscores where file names may have hyphens
  local dest="$1" name file
  shift
  for name in "$@"; do
    file="$(find "$modules" -name "${name//_/[_-]}.ko" -print -quit)"
    [ -n "$file" ] || { echo "the kernel has no module $name" >&2; return 1; }
    [ -e "$dest/$(basename "$file")" ] && continue
    cp "$file" "$dest/"
    # shellcheck disable=SC2046
    copy_modules "$dest" $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',' ' ')
  done
}
copy_modules "$boot/lib/modules/$version" ata_piix sd_mod ext4 crc32c_generic crct10dif_generic crc64_rocksoft_generic
busybox depmod -b "$boot" "$version" 2>/dev/null || true
(cd "$boot" && find . | LC_ALL=C sort | cpio -o -H newc 2>/dev/null | gzip -n -1) >"$work/boot.initrd"

# 3. The guest's initramfs.
guest_root="$work/guest"
mkdir -p "$guest_root/bin" "$guest_root/dev" "$guest_root/proc" "$guest_root/sys" "$guest_root/tmp" "$guest_root/lib/modules/$version"
cp "$(command -v busybox)" "$guest_root/bin/busybox"
install -m 755 "$guest/init" "$guest_root/init"
copy_modules "$guest_root/lib/modules/$version" xen_netfront xen_blkfront ext4 crc32c_generic ata_piix sd_mod crct10dif_generic crc64_rocksoft_generic 8139cp
busybox depmod -b "$guest_root" "$version" 2>/dev/null || true

# 4. dom0's disk.
keep="$work/keep"
mkdir -p "$keep"
copy_modules "$keep" xen_evtchn xen_gntdev xen_gntalloc xen_privcmd xenfs xen_netback xen_blkback bridge tun loop dm_mod dm_snapshot dm_thin_pool
rm -rf "$root/lib/modules/$version" "$root"/boot "$root"/usr/share/iso-codes "$root"/usr/lib/debug
mkdir -p "$root/lib/modules/$version" "$root/lab" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/root" "$root/opt"
mv "$keep"/* "$root/lib/modules/$version/"
busybox depmod -b "$root" "$version" 2>/dev/null || true
cp "$(command -v busybox)" "$root/bin/busybox"
cp -L "$node" "$root/usr/bin/node"
install -m 755 "$here/dom0-init" "$root/lab/init"
install -m 755 "$here/vif-lab" "$root/lab/vif-lab"
install -m 755 "$here/block-lab" "$root/lab/block-lab"
mkdir -p "$root/etc/lvm"
cp "$here/lvm.conf" "$root/etc/lvm/lvm.conf"
cp "$work/vmlinuz" "$root/lab/vmlinuz"
(cd "$guest_root" && find . | LC_ALL=C sort | cpio -o -H newc 2>/dev/null | gzip -n -1) >"$root/lab/guest.initrd"
[ -e "$root/bin/sh" ] || ln -s bash "$root/bin/sh"
rm -rf "$root/var/run" "$root/var/lock"
ln -s /run "$root/var/run"
ln -s /run/lock "$root/var/lock"
: >"$root/etc/xen/xl.conf"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
size_kib="$(du -sk "$root" | cut -f1)"
mke2fs -q -t ext4 -O ^has_journal,^metadata_csum -d "$root" "$work/root.img" "$((size_kib + size_kib / 5 + 1500000))k"

mv "$work/xen.elf" "$work/vmlinuz" "$work/boot.initrd" "$work/root.img" "$cache/"
echo "$wanted" >"$cache/.built-from"
