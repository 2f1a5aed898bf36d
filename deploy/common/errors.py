"""Errors of the commands. ``cli`` turns each into a message of one line and an exit code."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports gRPC, which would slow down --help
    from understudy.statesync.etcd.settings import EtcdSettings


class DeployError(Exception):
    """Base of the errors in ``deploy``: wrong use, or a missing part. The text says what, where and what to do."""

    exit_code = 2


class PortInUseError(DeployError):
    """The listen address ``address`` is in use, or cannot be used on this machine."""

    def __init__(self, address: str, remedy: str, detail: str = "in use by another process") -> None:
        super().__init__(f"{address} is {detail}: {remedy}")
        self.address = address


class ProgramMissingError(DeployError):
    """``program``, which a local pool needs, is not installed."""

    def __init__(self, program: str, remedy: str) -> None:
        super().__init__(f"{program} was not found: {remedy}")
        self.program = program


class ProcessStartError(DeployError):
    """A process ended, or did not become ready in time; ``log`` is its log file."""

    def __init__(self, name: str, detail: str, log: str) -> None:
        super().__init__(f"{name} {detail}; its log is {log}")
        self.name = name
        self.log = log


class NotReadyError(ProcessStartError):
    """A process runs, but did not become ready in time. ``refused``: it answered its health check with an error."""

    def __init__(self, name: str, detail: str, log: str, *, refused: bool = False) -> None:
        super().__init__(name, detail, log)
        self.refused = refused


class AlreadyRunningError(DeployError):
    """Another pool runs in the same state directory."""


class NegativeAnswer(DeployError):
    """The answer to the command is negative: what was asked for does not exist, or cannot be done. Exit code 1."""

    exit_code = 1


class NoPoolError(DeployError):
    """``etcd`` has no pool of the name ``pool``; ``waiting`` are the processes that wait for it."""

    def __init__(self, pool: str, etcd: "EtcdSettings", waiting: Sequence[str] = ()) -> None:
        who = f", although {', '.join(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for it" if waiting else ""
        super().__init__(f"there is no pool {pool!r} in etcd at {', '.join(etcd.endpoints)}{who}")
        self.pool = pool
        self.etcd = etcd
