"""Ties a program's life to that of the process that starts it, then becomes that program.

Run as a script, ``python -I -S pdeathsig.py PARENT_PID PROGRAM ARGUMENT...``: asks the kernel (Linux) for
SIGTERM when the parent goes, even by ``kill -9``, and replaces itself by PROGRAM. Without it a killed
supervisor leaves a program behind that holds its ports against the supervisor's successor. On other systems
it only replaces itself.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def tethered(program: Path, *arguments: str) -> tuple[str, ...]:
    """The command line that runs ``program`` tied to the calling process."""
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()), str(program), *arguments)


def main(parent: int, program: list[str]) -> int:
    """Become the program. Returns 127 if it cannot be run, 1 if the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1
    try:
        os.execv(program[0], program)  # noqa: S606 - becoming the program is what this is for
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}{_interpreter(program[0])}: {error.strerror}\n")
        return 127


def _interpreter(program: str) -> str:
    """Which interpreter a script names, in words: when that is missing, the kernel says it of the script."""
    try:
        with open(program, "rb") as file:  # noqa: PTH123 - starts quickly
            line = file.readline(256)
    except OSError:
        return ""
    if not line.startswith(b"#!"):
        return ""
    named = line[2:].strip().decode(errors="replace")
    return f" by its interpreter {named}"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
