"""Named places at which a process can be told, at its start, to end itself as ``kill -9`` would.

For tests of the protocol (``docs/debugging.md``): a random kill hardly ever hits the moment between a transaction and
its answer, and these always do. Nothing is armed unless ``UNDERSTUDY_CRASH_AT`` is set when the process starts, which
it then says in its log; a name that does not exist keeps it from starting. What is left to do at an unarmed point is
one comparison.
"""

import logging
import os
import signal
from enum import StrEnum

VARIABLE = "UNDERSTUDY_CRASH_AT"

logger = logging.getLogger(__name__)


class CrashPoint(StrEnum):
    """Where a sidecar can end; the names are part of ``UNDERSTUDY_CRASH_AT``."""

    WRITE_DECIDED = "write.decided"
    """Session writes are gathered, their transaction is not sent."""
    WRITE_COMMITTED = "write.committed"
    """The transaction is in etcd; no client has been answered, and this process's memory does not know."""
    CLAIM_DECIDED = "claim.decided"
    """Two witnesses spoke, the claim is not sent."""
    CLAIM_WON = "claim.won"
    """The owner records name this process, and it has not caught up."""
    HANDOVER_CLOSED = "handover.closed"
    """The owner has closed the slot's gate; its record is as before."""
    HANDOVER_FENCED = "handover.fenced"
    """The owner has put its record into phase ``handover``; the target has not been told."""
    HANDOVER_CONFIRMED = "handover.confirmed"
    """The target has told the owner that it is active; nobody who waited at the gate knows."""
    TARGET_ASKED = "handover.target-asked"
    """The target has everything and is about to make itself active."""
    TARGET_ACTIVE = "handover.target-active"
    """The target is active in etcd; the owner has not heard so."""
    UNDO_DECIDED = "handover.undo"
    """The target failed; the owner has not taken the slot back yet."""
    SYNC_PAGE = "sync.page"
    """A page of a slot's full copy is in memory, the copy is not complete."""


class UnknownCrashPoint(ValueError):
    """``UNDERSTUDY_CRASH_AT`` names no crash point, or not how often."""


class _Armed:
    """The one point of this process that is armed, and how many times it may still be passed. Empty for no point."""

    point: CrashPoint | None = None
    passes = 0


def arm_from_environment() -> None:
    """Arm what ``UNDERSTUDY_CRASH_AT=name[:nth]`` asks for (the first time, unless told otherwise), or nothing.

    Raises:
        UnknownCrashPoint: the process should not start.
    """
    asked = os.environ.get(VARIABLE, "")
    if not asked:
        _Armed.point = None
        return
    name, _, count = asked.partition(":")
    if name not in set(CrashPoint) or not (count or "1").isdecimal() or int(count or "1") < 1:
        raise UnknownCrashPoint(
            f"{VARIABLE}={asked}: expected NAME or NAME:NTH, where NAME is one of {', '.join(CrashPoint)}; "
            "unset it unless you are testing"
        )
    _Armed.point, _Armed.passes = CrashPoint(name), int(count or "1") - 1
    logger.warning("%s is set: this process will kill itself at %s", VARIABLE, asked)


def crash_point(point: CrashPoint) -> None:
    """End the process here and now if ``point`` is armed and its turn has come."""
    if _Armed.point is not point:
        return
    if _Armed.passes:
        _Armed.passes -= 1
        return
    logger.warning("%s: killing this process at %s", VARIABLE, point)
    os.kill(os.getpid(), signal.SIGKILL)
