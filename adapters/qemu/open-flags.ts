/**
 * Flags of open(2) with which a process has a file open.
 * @param fdinfo text of /proc/PID/fdinfo/FD, where they stand in octal (proc_pid_fdinfo(5))
 * @returns 0 when there are none to read
 */
export function openFlagsOf(fdinfo: string): number {
  return Number.parseInt(/^flags:\s*([0-7]+)/m.exec(fdinfo)?.[1] ?? '0', 8);
}
