#!/usr/bin/env bash
# All tests, or the tiers named as arguments: unit property contract fault golden lab nested; lab/NAME is one file of that tier. `nested`
# is real KVM inside an emulated machine: by default its brief run of the trackers, when named also disks on logical volumes; with
# CAIRN_NESTED=full it takes hours.
# Sets up what it needs first: npm packages, Debian packages for the lab (says so), the build.
set -euo pipefail
cd "$(dirname "$0")/.."

tiers=("$@")
[ ${#tiers[@]} -gt 0 ] || tiers=(unit property contract fault golden lab nested/nested.test)

[ -d node_modules ] || npm ci --no-audit --no-fund
case " ${tiers[*]} " in
  *" lab"* | *" contract "* | *" fault "*) bash test/lab/setup/ensure.sh --with-qemu-10 ;;
esac
case " ${tiers[*]} " in
  *" nested"*) bash test/nested/setup/ensure.sh ;;
esac
npm run --silent build

export NODE_OPTIONS="--experimental-vm-modules --no-warnings ${NODE_OPTIONS:-}"
fast=() lab=()
for tier in "${tiers[@]}"; do
  case "$tier" in
    lab | nested) lab+=("dist/test/$tier/") ;;
    lab/* | nested/*) lab+=("dist/test/$tier") ;;
    *) fast+=("dist/test/$tier/") ;;
  esac
done
status=0
if [ ${#fast[@]} -gt 0 ]; then npx jest --maxWorkers=2 "${fast[@]}" || status=$?; fi
# Guests under emulation want the machine to themselves. A test that fails may leave a guest or a socket behind, which must
# not keep the whole run from ending; hence --forceExit.
if [ ${#lab[@]} -gt 0 ]; then npx jest --runInBand --forceExit "${lab[@]}" || status=$?; fi
exit "$status"
