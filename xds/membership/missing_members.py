"""Members that were lost and have not come back, so that an operator can look at them. Pure.

A member is not missing if another name has taken its place, as the next pod of a Deployment does.
"""

from collections.abc import Mapping

import msgspec

from understudy.statesync.pool.records import Lost

FORGET_SECONDS = 3600.0
"""A lost member that was not started again within this time was removed on purpose."""


class _Entry(msgspec.Struct, frozen=True):
    boot: str
    cause: str
    since: float
    size: int
    """Number of members while it was there."""


class MissingMembers:
    """Remembers the members that a table named lost. Later tables name them no more."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def update(self, lost: Mapping[str, Lost], registered: Mapping[str, str], now: float) -> None:
        """Take in the table's lost members, and the boot of every registered member."""
        for member, one in lost.items():
            known = self._entries.get(member)
            if known is None or known.boot != one.boot:
                self._entries[member] = _Entry(one.boot, one.cause, now, len({*registered, member}))
        alive = sum(member not in lost or lost[member].boot != boot for member, boot in registered.items())
        self._entries = {
            member: entry
            for member, entry in self._entries.items()
            if not _is_back(entry, lost.get(member), registered.get(member))
            and alive < entry.size
            and now - entry.since < FORGET_SECONDS
        }

    def members(self, now: float) -> dict[str, tuple[str, float]]:
        """Who is missing: why it was lost, and for how many seconds it has been away."""
        return {
            member: (entry.cause, now - entry.since)
            for member, entry in sorted(self._entries.items())
            if now - entry.since < FORGET_SECONDS
        }


def _is_back(entry: _Entry, lost: Lost | None, registered: str | None) -> bool:
    """Whether a new process of the member is registered, or the table no longer calls the registered one lost."""
    return registered is not None and (registered != entry.boot or lost is None or lost.boot != entry.boot)
