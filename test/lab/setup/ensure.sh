#!/usr/bin/env bash
# Makes sure that the lab can run: Debian packages, a guest image, with --with-qemu-10 a second QEMU, with --with-9p a guest that has 9p.
# Quick when all is there. Everything it makes lies in the cache folder, outside the source tree.
#
# The second QEMU comes from bookworm-backports and is only unpacked, never installed: apt works with a sources list and
# state folders of its own, so the system's configuration stays as it is.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cache="${CAIRN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cairn}/lab"
asked() { case " $options " in *" $1 "*) return 0 ;; *) return 1 ;; esac }
options="$*"
mkdir -p "$cache"
# Two test runs at once must not build the same files.
exec 9>"$cache/.lock"
flock 9

bash "$here/ensure-packages.sh" qemu-system-x86 qemu-utils busybox-static cpio ovmf

bash "$here/build-guest.sh" "$cache"
if asked --with-9p; then bash "$here/build-9p-guest.sh" "$cache"; fi

if asked --with-qemu-10 && [ ! -e "$cache/qemu-10/.complete" ]; then
  echo "unpacking QEMU 10 from bookworm-backports into $cache/qemu-10"
  apt_dir="$cache/apt"
  rm -rf "$cache/qemu-10"
  mkdir -p "$apt_dir/lists/partial" "$apt_dir/archives/partial" "$cache/qemu-10"
  for suite in 'debian bookworm' 'debian bookworm-updates' 'debian-security bookworm-security' 'debian bookworm-backports'; do
    read -r archive name <<<"$suite"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/$archive $name main"
  done >"$apt_dir/sources.list"
  apt=(apt-get -qq -o "Dir::Etc::sourcelist=$apt_dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$apt_dir/lists" -o "Dir::Cache=$apt_dir" -o "Dir::Cache::archives=$apt_dir/archives"
    -o APT::Sandbox::User=root)
  "${apt[@]}" update
  # What apt would install or upgrade for it is exactly what this system lacks.
  "${apt[@]}" -y --download-only --no-install-recommends -t bookworm-backports install qemu-system-x86 >/dev/null
  for deb in "$apt_dir"/archives/*.deb; do dpkg -x "$deb" "$cache/qemu-10"; done
  rm -rf "$apt_dir"
  touch "$cache/qemu-10/.complete"
fi
