"""What goes wrong when pools are started and read; ``cli`` makes one line and an exit code of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loading it brings gRPC along, which no --help should wait for
    from understudy.statesync.etcd.settings import EtcdSettings


class DeployError(Exception):
    """Base of this room's errors: wrong use or a missing part. The text says what, where and what to do."""

    exit_code = 2


class PortInUseError(DeployError):
    """An address to listen at is taken (``address``), or cannot be used on this machine."""

    def __init__(self, address: str, remedy: str, detail: str = "in use by another process") -> None:
        super().__init__(f"{address} is {detail}: {remedy}")
        self.address = address


class ProgramMissingError(DeployError):
    """A program that a local pool needs (``program``) is not installed."""

    def __init__(self, program: str, remedy: str) -> None:
        super().__init__(f"{program} was not found: {remedy}")
        self.program = program


class StartError(DeployError):
    """A process ended, or did not become ready in time; ``log`` is where it told why."""

    def __init__(self, name: str, detail: str, log: str) -> None:
        super().__init__(f"{name} {detail}; its log is {log}")
        self.name = name
        self.log = log


class NotReadyError(StartError):
    """A process runs, but did not become ready in time. ``refused``: it answered, and said no."""

    def __init__(self, name: str, detail: str, log: str, *, refused: bool = False) -> None:
        super().__init__(name, detail, log)
        self.refused = refused


class AlreadyRunningError(DeployError):
    """Another pool runs in the same state directory."""


class NotFoundError(DeployError):
    """What was asked for is not there: the answer is no, exit code 1."""

    exit_code = 1


class NoPoolError(DeployError):
    """A pool of this name (``pool``) was never made in that ``etcd``; ``waiting``: the processes that wait for it."""

    def __init__(self, pool: str, etcd: "EtcdSettings", waiting: Sequence[str] = ()) -> None:
        who = f", although {', '.join(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for it" if waiting else ""
        super().__init__(f"there is no pool {pool!r} in etcd at {', '.join(etcd.endpoints)}{who}")
        self.pool = pool
        self.etcd = etcd
