"""The load of members and slots, as members report it in their beats. Pure.

A slot that moves keeps its last known load until its new active has measured it for long enough. So what is decided
from loads does not change because a slot moved.
"""

from collections.abc import Container, Mapping

import msgspec

from understudy.statesync.heartbeat.load_report import LOAD_INTERVAL, LoadReport
from understudy.xds.membership.member_health import SECOND, MemberBoot

STALE_AFTER = round(6 * LOAD_INTERVAL * SECOND)
"""A member whose last report is older than this, in ns, has no known load."""


class SlotMeasure(msgspec.Struct, frozen=True):
    """The load of a slot: session calls a second, sessions, bytes of their bodies, and CPUs.

    ``cpu`` is the part of its active's CPU that its calls have in all calls there; nothing measures it for one slot.
    """

    calls: float = 0.0
    sessions: int = 0
    bytes: int = 0
    cpu: float = 0.0


class MemberLoad(msgspec.Struct, frozen=True):
    """The load of a member: its last report, of how many seconds ago, and the sums of the slots that it reports."""

    report: LoadReport
    age: float
    calls: float
    sessions: int
    bytes: int


class PoolLoad(msgspec.Struct, frozen=True):
    """The load of a pool at one moment: of members that report, and of slots that are known."""

    members: Mapping[str, MemberLoad]
    slots: Mapping[int, SlotMeasure]


class LoadBook:
    """The reports of one pool's members."""

    def __init__(self) -> None:
        self._reports: dict[MemberBoot, tuple[LoadReport, int]] = {}
        self._slots: dict[int, SlotMeasure] = {}

    def on_report(self, who: MemberBoot, report: LoadReport, now: int) -> None:
        """A member reported its load; ``now`` in ns."""
        self._reports[who] = (report, now)
        calls = sum(one.calls for one in report.slots)
        for one in report.slots:
            cpu = report.cpu * one.calls / calls if calls else 0.0
            self._slots[one.slot] = SlotMeasure(one.calls, one.sessions, one.bytes, cpu)

    def forget_all_but(self, known: Container[MemberBoot]) -> None:
        """Forget the reports of processes that are gone; what is known of slots stays."""
        self._reports = {who: at for who, at in self._reports.items() if who in known}

    def current(self, now: int) -> PoolLoad:
        """The load at ``now`` (ns)."""
        newest: dict[str, tuple[LoadReport, int]] = {}
        for (member, _), (report, at) in self._reports.items():
            if now - at < STALE_AFTER and (member not in newest or newest[member][1] < at):
                newest[member] = (report, at)
        return PoolLoad(
            {member: _member_load(report, (now - at) / SECOND) for member, (report, at) in sorted(newest.items())},
            dict(self._slots),
        )


def _member_load(report: LoadReport, age: float) -> MemberLoad:
    return MemberLoad(
        report,
        age,
        calls=sum(one.calls for one in report.slots),
        sessions=sum(one.sessions for one in report.slots),
        bytes=sum(one.bytes for one in report.slots),
    )
