#!/usr/bin/env bash
# All tests, or the tiers named as arguments: unit property contract fault golden fuzz lab nested; lab/NAME is one file of that tier. `nested`
# is real KVM inside an emulated machine: by default its brief run of the trackers, when named also disks on logical volumes and repositories on
# NFS; with CAIRN_NESTED=full it takes hours.
# Sets up what it needs first: npm packages, Debian packages for the lab (says so), the build.
# Fails as well when the run leaves something behind: see leftovers.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

tiers=("$@")
[ ${#tiers[@]} -gt 0 ] || tiers=(unit property contract fault golden fuzz lab nested/nested.test)
names() { case " ${tiers[*]} " in *" $1"*) return 0 ;; *) return 1 ;; esac }

[ -d node_modules ] || npm ci --no-audit --no-fund

# A short name: paths of sockets, which may have 107 bytes at most, begin with it.
run="$(mktemp -d /tmp/ct-XXXXXX)"
# The QEMUs of libvirt run as another user, and have files below it.
chmod 711 "$run"
bash test/leftovers.sh stock >"$run/before"

# However the run ends, nothing of it stays: processes are ended, its folder goes.
finish() {
  local status=$? left
  trap - EXIT
  left="$(env -u CAIRN_TEST_RUN -u TMPDIR -u CAIRN_STATE_DIR bash test/leftovers.sh left "$run" "$run/before")"
  rm -rf "$run"
  if [ -n "$left" ]; then
    printf 'the tests have left behind:\n%s\n' "$left" >&2
    [ "$status" != 0 ] || status=1
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM
export TMPDIR="$run" CAIRN_TEST_RUN="$run" CAIRN_STATE_DIR="$run/state"

# What some files of the lab need beside. Where it cannot be had, they say so themselves.
set_up_lab() {
  local tier
  for tier in "${tiers[@]}"; do
    case "$tier" in lab | lab/rbd* | lab/s3*) bash test/lab/setup/ensure-ceph.sh || true ;; esac
    case "$tier" in lab | lab/libvirt* | lab/back-ends) bash test/lab/setup/ensure-libvirt.sh || true ;; esac
    case "$tier" in lab | lab/xen*) bash test/lab/xen/setup/ensure-xen.sh || true ;; esac
    case "$tier" in nested*) bash test/nested/setup/ensure.sh || true ;; esac
  done
}

bash test/build.sh &
building=$!
if names lab || names contract || names fault; then bash test/lab/setup/ensure.sh --with-qemu-10; fi
wait "$building"

fast=() lab=()
for tier in "${tiers[@]}"; do
  case "$tier" in
    lab | nested) lab+=("dist/test/$tier/") ;;
    lab/* | nested/*) lab+=("dist/test/$tier") ;;
    *) fast+=("dist/test/$tier/") ;;
  esac
done
jobs=("${lab[@]}")
if [ ${#fast[@]} -gt 0 ]; then jobs=("fast:$(IFS=,; echo "${fast[*]}")" "${jobs[@]}"); fi

# Mostly waiting for packages, so it goes on beside the fast tiers, which need nothing of it.
{
  set_up_lab >"$run/set-up.log" 2>&1
  touch "$run/ready"
} &
setting_up=$!
export NODE_OPTIONS="--experimental-vm-modules --no-warnings ${NODE_OPTIONS:-}"
status=0
node dist/test/support/run-apart.js "$run/ready" "${jobs[@]}" || status=$?
wait "$setting_up"
cat "$run/set-up.log"
exit "$status"
