#!/usr/bin/env bash
# build-l1.sh CACHE SUITE: kernel and base initramfs of the nested lab's outer machine, from packages of a Debian suite (bookworm or
# bookworm-backports) and from what this system has installed: Node.js, QEMU and the libraries both need.
# Leaves CACHE/nested/SUITE/{vmlinuz,base.cpio}. Packages are unpacked, never installed.
set -euo pipefail
cache="$1" suite="$2"
here="$(cd "$(dirname "$0")" && pwd)"
out="$cache/nested/$suite"
programs=(/usr/bin/qemu-system-x86_64 /usr/bin/qemu-img "$(command -v node)" /bin/busybox)

wanted="$(cat "$here/../l1"/* "$0" "${programs[@]}" "$cache/guest/.built-from" "$cache/qemu-10/usr/bin/qemu-system-x86_64" | sha256sum | cut -c1-16)"
[ "$(cat "$out/.built-from" 2>/dev/null)" = "$wanted" ] && exit 0
echo "building the nested lab's machine ($suite) in $out"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"

# A sources list and state folders of its own: the system's configuration of apt stays as it is.
mkdir -p apt/lists/partial apt/archives/partial
for name in bookworm "$suite"; do
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $name main"
done | sort -u >apt/sources.list
options=(-o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt" -o APT::Sandbox::User=root)
apt-get -qq "${options[@]}" update
meta="linux-image-cloud-amd64"
version="$(apt-cache "${options[@]}" madison "$meta" | awk -F' *[|] *' -v suite=" $suite/" 'index(" " $3, suite) && !seen++ { print $2 }')"
package="$(apt-cache "${options[@]}" show "$meta=$version" | sed -n 's/^Depends: \(linux-image[^ ,]*\).*/\1/p')"
apt-get -qq "${options[@]}" download "$package=$version"
dpkg -x ./*.deb kernel
mkdir lvm lvm-debs
(cd lvm-debs && apt-get -qq "${options[@]}" download lvm2/bookworm dmsetup/bookworm libdevmapper1.02.1/bookworm \
  libdevmapper-event1.02.1/bookworm libaio1/bookworm libedit2/bookworm libbsd0/bookworm libmd0/bookworm)
for deb in lvm-debs/*.deb; do dpkg -x "$deb" lvm; done
# The server and the client of NFS, and what their libraries need beyond an essential system.
mkdir nfs nfs-debs
(cd nfs-debs && apt-get -qq "${options[@]}" download $(printf '%s/bookworm ' nfs-kernel-server nfs-common rpcbind netbase e2fsprogs \
  libext2fs2 libtirpc3 libtirpc-common libnsl2 libwrap0 libevent-core-2.1-7 libsqlite3-0 libkeyutils1 libgssapi-krb5-2 libkrb5-3 \
  libk5crypto3 libkrb5support0))
for deb in nfs-debs/*.deb; do dpkg -x "$deb" nfs; done

mkdir -p root/{bin,dev,proc,sys,tmp,run,usr/bin,usr/share,lib/modules,cache/lab/guest,cache/lab,cairn}
ln -s bin root/sbin
cp /bin/busybox root/bin/
cp "$here/../l1/init" root/init
mkdir -p root/etc/lvm
cp "$here/../l1/lvm.conf" root/etc/lvm/
cp /usr/bin/qemu-system-x86_64 /usr/bin/qemu-img "$(readlink -f "$(command -v node)")" root/usr/bin/
chmod 755 root/init root/usr/bin/*
copy_libraries() {
  ldd "$1" | grep -o '/[^ ]*' | grep -v "^$work" | while read -r library; do
    [ -e "root$library" ] || { mkdir -p "root$(dirname "$library")" && cp -L "$library" "root$library"; }
  done
}
for program in root/usr/bin/*; do copy_libraries "$program"; done
cp lvm/sbin/lvm lvm/sbin/dmsetup root/usr/bin/
# Its libraries: those of the packages, and what they need of this system.
cp -P lvm/lib/x86_64-linux-gnu/*.so* lvm/usr/lib/x86_64-linux-gnu/*.so* root/lib/x86_64-linux-gnu/
for program in lvm dmsetup; do
  LD_LIBRARY_PATH="$work/root/lib/x86_64-linux-gnu" copy_libraries root/usr/bin/$program
done
nfs_programs="rpcbind rpc.mountd rpc.nfsd exportfs nfsdcld mount.nfs mke2fs"
for program in $nfs_programs; do cp nfs/*bin/$program nfs/usr/*bin/$program root/usr/bin/ 2>/dev/null || [ -e root/usr/bin/$program ]; done
ln -s mount.nfs root/usr/bin/mount.nfs4
cp nfs/etc/{netconfig,services,protocols,rpc} root/etc/
touch root/etc/exports
printf '%s:x:%s:0::/:/bin/sh\n' root 0 _rpc 106 >root/etc/passwd
cp -P nfs/lib/x86_64-linux-gnu/*.so* nfs/usr/lib/x86_64-linux-gnu/*.so* root/lib/x86_64-linux-gnu/
for program in $nfs_programs; do
  LD_LIBRARY_PATH="$work/root/lib/x86_64-linux-gnu" copy_libraries root/usr/bin/$program
done
# Loaded by name at run time: zstd by Cairn.
zstd="$(ldconfig -p | awk '/libzstd.so.1 .*x86-64/ && !seen++ { print $NF }')"
mkdir -p "root$(dirname "$zstd")" && cp -L "$zstd" "root$zstd"
mkdir -p root/usr/share/qemu
for file in /usr/share/qemu/*.bin /usr/share/qemu/*.rom /usr/share/seabios/*.bin; do
  [ -e "$file" ] && cp -L "$file" root/usr/share/qemu/
done
rm -f root/usr/share/qemu/{opensbi,u-boot,s390,hppa,skiboot,slof,palcode}*
# In the order in which init loads them. A kernel that has one built in has no file of it.
add_modules() { # LIST MODULE...
  local list="$1" module file
  shift
  for module in "$@"; do
    file="$(echo kernel/lib/modules/*/kernel/$module.ko*)"
    case "$file" in
      *.xz) /bin/busybox xz -dc "$file" >"root/lib/modules/$(basename "$module").ko" ;;
      *.ko) cp "$file" root/lib/modules/ ;;
      *) continue ;;
    esac
    basename "$module" >>"root/lib/modules/$list"
  done
}
add_modules order virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd drivers/virtio/virtio_ring drivers/virtio/virtio \
  drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci \
  drivers/block/virtio_blk drivers/net/tun drivers/net/tap drivers/vhost/vhost_iotlb drivers/vhost/vhost drivers/vhost/vhost_net \
  drivers/block/loop lib/libcrc32c drivers/md/dm-mod drivers/md/dm-bufio drivers/md/dm-snapshot \
  drivers/md/persistent-data/dm-persistent-data drivers/md/dm-bio-prison drivers/md/dm-thin-pool
# Loaded by the test of NFS.
add_modules order-nfs drivers/net/veth net/sunrpc/sunrpc net/sunrpc/auth_gss/auth_rpcgss net/dns_resolver/dns_resolver fs/nfs_common/grace \
  fs/lockd/lockd fs/nfs_common/nfs_acl fs/netfs/netfs fs/fscache/fscache fs/nfs/nfs fs/nfs/nfsv3 fs/nfs/nfsv4 fs/nfsd/nfsd
cp "$cache/guest/vmlinuz" "$cache/guest/initrd.gz" "$cache/guest/.built-from" root/cache/lab/guest/
mkdir -p root/cache/lab/qemu-10
if [ "$suite" = bookworm-backports ]; then
  # The lab's second QEMU, without what it does not open.
  (cd "$cache/qemu-10" && find usr/bin/qemu-system-x86_64 usr/lib usr/share/qemu usr/share/seabios -not -path '*/keymaps/*' | cpio -o -H newc 2>/dev/null) |
    (cd root/cache/lab/qemu-10 && cpio -idm --quiet)
  LD_LIBRARY_PATH="$cache/qemu-10/usr/lib/x86_64-linux-gnu" copy_libraries "$cache/qemu-10/usr/bin/qemu-system-x86_64"
fi
touch root/cache/lab/qemu-10/.complete

mkdir -p "$out"
(cd root && find . | LC_ALL=C sort | cpio -o -H newc 2>/dev/null) >"$out/base.cpio"
cp kernel/boot/vmlinuz-* "$out/vmlinuz"
echo "$wanted" >"$out/.built-from"
