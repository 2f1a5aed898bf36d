"""Starting programs that end with the test process, however that ends."""

import sys
from collections.abc import Sequence

# prctl(PR_SET_PDEATHSIG, SIGKILL), then become the program. A launcher instead of ``preexec_fn``: that would fork the
# whole test process, with gRPC's threads in it.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the test process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound_to(parent: int, command: Sequence[str]) -> list[str]:
    """The command that runs ``command`` (an absolute path and arguments) for as long as process ``parent`` lives.

    To be started by the main thread of ``parent``; the process id stays that of the program.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(parent), *command]
