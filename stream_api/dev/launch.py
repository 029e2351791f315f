"""A launcher that becomes another program: `python -I -S launch.py OPTIONS -- PROGRAM ARGUMENTS…`.

It runs between fork and exec what Python's own `preexec_fn` could only do at the risk of a deadlock in a process with
threads: it ties the program to its parent (PR_SET_PDEATHSIG), joins a control group, and gives up root. Standard
library only, and nothing of this package: it is run as a file.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import sys
from pathlib import Path

#: From linux/prctl.h: the signal that this process gets when the thread that started it ends.
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Parse the options, apply them and exec."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    parser.add_argument("--death-signal", type=int, required=True, help="signal to get when the parent ends")
    parser.add_argument("--user", help="user to become")
    parser.add_argument("--cgroup", action="append", default=[], help="file to write the own process id into")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    for processes in options.cgroup:
        Path(processes).write_text(f"{os.getpid()}\n", encoding="ascii")
    if options.user is not None:
        entry = pwd.getpwnam(options.user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":
        # After setuid, for a change of user clears it.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, options.death_signal, 0, 0, 0)
        if os.getppid() != options.parent:  # The parent ended before prctl was there to notice.
            sys.exit(1)
    os.execv(options.program[0], options.program)  # noqa: S606


if __name__ == "__main__":
    main()
