#!/usr/bin/env bash
# Makes sure that a libvirt with its QEMU driver answers at qemu:///system. Quick when it does. Installs Debian packages and
# starts the daemons where nobody else does; both need root. They stay when the tests are over.
# Exit status 1, with the reason on stderr, where libvirt cannot be had.
set -euo pipefail

answers() { virsh -c qemu:///system version >/dev/null 2>&1; }

# One that has ended but was not collected does not count.
is_running() { pgrep --runstates D,R,S -x "$1" >/dev/null; }

packages=(libvirt-daemon-system libvirt-clients swtpm swtpm-tools)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && answers && exit 0
if [ "$(id -u)" != 0 ]; then
  # Somebody else's libvirt, from other packages: the tests use what it has.
  answers && exit 0
  echo "no libvirt at qemu:///system; this sets one up: sudo bash test/lab/setup/ensure-libvirt.sh" >&2
  exit 1
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing Debian packages: ${missing[*]}"
  if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null; then
    echo "the packages ${missing[*]} cannot be installed" >&2
    exit 1
  fi
fi
answers && exit 0

# The daemons outlive the test run that starts them, and hand what they have to the QEMUs that they start.
unset TMPDIR CAIRN_TEST_RUN CAIRN_STATE_DIR
# No init system that would start them. Without virtlogd the QEMU driver starts no domain.
is_running virtlogd || virtlogd -d
# Processes whose parent has ended become the children of process 1. libvirt's QEMUs do, and it waits until they are
# gone for good; a process 1 that is no real init may take seconds to notice. So libvirtd runs below a process that takes
# (PR_SET_CHILD_SUBREAPER) and collects them.
start_below_reaper() {
  setsid perl -e '
    syscall(157, 36, 1, 0, 0, 0) == 0 or die "prctl: $!";
    my $daemon = fork // die "fork: $!";
    if ($daemon == 0) { exec "libvirtd" or die "libvirtd: $!" }
    while ((my $ended = wait) != -1) { exit if $ended == $daemon }
  ' </dev/null >/dev/null 2>&1 &
}
is_running libvirtd || start_below_reaper
for _ in $(seq 100); do
  answers && exit 0
  sleep 0.1
done
echo "libvirtd was started but does not answer at qemu:///system" >&2
exit 1
