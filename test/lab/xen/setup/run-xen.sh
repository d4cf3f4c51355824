#!/usr/bin/env bash
# run-xen.sh PAYLOAD.tar OUT_DIR [TIMEOUT_S]: boots dom0, which runs ./run.sh of the payload; what that leaves in /out comes back to OUT_DIR,
# together with the serial console. Exit code: that of run.sh, 124 when dom0 did not come to an end, 125 when the emulated machine stands still:
# dom0, which says something every 15 s, has said nothing for STILL_S.
#
# The processor model is one under which Xen runs without KVM: newer ones bring SMAP, which dom0 does not survive, and rdtscp, which PVH guests
# do not survive; the SSE additions are what WebAssembly needs. XEN_LAB_CPU names another
# model: PV guests do not need SVM, and get XSAVE with SandyBridge,-rdtscp.
set -euo pipefail
STILL_S="${XEN_LAB_STILL_S:-240}"
payload="$1" out="$2" limit="${3:-900}"
cache="${CAIRN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cairn}/lab/xen"
mkdir -p "$out"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp "$payload" "$work/payload.img"
truncate -s %512 "$work/payload.img"
truncate -s "${XEN_LAB_OUT_SIZE:-1G}" "$work/out.img"
timeout -k 5 "$limit" nice -n "${XEN_LAB_NICE:-5}" qemu-system-x86_64 -accel tcg -smp "${XEN_LAB_CPUS:-1}" \
  -cpu "${XEN_LAB_CPU:-Opteron_G3,+svm,+npt,-rdtscp,+ssse3,+sse4.1,+sse4.2}" -m "${XEN_LAB_MEMORY_MIB:-3584}" \
  -kernel "$cache/xen.elf" -append "dom0_mem=${XEN_LAB_DOM0_MIB:-2048}M console=com1 com1=115200 no-real-mode" \
  -initrd "$cache/vmlinuz console=hvc0 quiet,$cache/boot.initrd" \
  -drive "file=$cache/root.img,format=raw,if=ide,snapshot=on" \
  -drive "file=$work/payload.img,format=raw,if=ide,readonly=off" \
  -drive "file=$work/out.img,format=raw,if=ide,cache=unsafe" \
  -nic none -nographic -no-reboot </dev/null >"$out/console.log" 2>&1 &
qemu=$!
trap 'kill $qemu 2>/dev/null || true; rm -rf "$work"' EXIT
while kill -0 $qemu 2>/dev/null; do
  sleep 1
  [ $(($(date +%s) - $(stat -c %Y "$out/console.log"))) -lt $STILL_S ] || { echo "the emulated machine has stood still for $STILL_S s" >>"$out/console.log"; exit 125; }
done
wait $qemu || { echo "dom0 did not come to an end within $limit s" >>"$out/console.log"; exit 124; }
tar -xf "$work/out.img" -C "$out" 2>/dev/null || true
grep -aq 'LAB: rc 0' "$out/console.log" && exit 0
exit 1
