#!/usr/bin/env bash
# What tests may leave behind on the machine.
#
#     leftovers.sh stock              lists what is there: files named after Cairn, mounts, loop devices, domains of libvirt
#     leftovers.sh left RUN BEFORE    lists what a run has left: what is there now and not in the list BEFORE, and processes of the run;
#                                     those are ended. RUN is the run's temporary folder.
#
# A process belongs to a run when the run's folder is in its environment or in its command line: so it is for the QEMUs that libvirt starts,
# and for the daemons of an unprivileged libvirt, which keep hardly more than HOME.
set -euo pipefail

stock() {
  # Folders named ct- are those of runs and of test files, see run.sh and folder-environment.ts.
  find /tmp /dev/shm /run -maxdepth 4 -name '*cairn*' ! -path '/tmp/ct-*' ! -path '/run/user/*' -prune -print 2>/dev/null | sed 's/^/file /' || true
  awk '$5 ~ /cairn/ { print "mount " $5 }' /proc/self/mountinfo
  { losetup -a 2>/dev/null || true; } | sed -n 's/^\([^:]*\):.*(\(.*cairn.*\))$/loop device \1 of \2/p'
  { timeout 10 virsh -q -c qemu:///system list --all --name 2>/dev/null || true; } | sed -n 's/^\(.*cairn.*\)$/domain \1/p'
}

# Of all at once: a look at each takes seconds on a busy machine. The run's name is in the command line of this script as well.
processes() { # RUN
  {
    grep -lsF "$1" /proc/[0-9]*/environ /proc/[0-9]*/cmdline || true
  } | cut -d/ -f3 | sort -un | while read -r pid; do
    # grep has ended by now, and so has what has no command line.
    case "$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" || true)" in '' | *leftovers.sh*) ;; *) echo "$pid" ;; esac
  done
}

case "$1" in
  stock) stock | LC_ALL=C sort ;;
  left)
    # The guards of a test process end right after it.
    for _ in $(seq 50); do
      left="$(processes "$2")"
      [ -n "$left" ] || break
      sleep 0.1
    done
    for pid in $left; do
      echo "process $pid: $({ tr '\0' ' ' <"/proc/$pid/cmdline" | cut -c1-200; } 2>/dev/null)"
      kill -9 "$pid" 2>/dev/null || true
    done
    stock | LC_ALL=C sort | LC_ALL=C comm -13 "$3" -
    # Mounts and loop devices below the folder would keep it from being removed.
    awk -v run="$2/" 'index($5, run) == 1 { print "mount " $5 }' /proc/self/mountinfo
    ;;
esac
