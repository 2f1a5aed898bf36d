"""Ownership of slots: which steps a member should take, and the transactions that carry them out. No I/O.

Fencing is one rule: an owner record is only replaced by a transaction that compares the ``mod_revision`` at which it
was last seen. So one of two claimants wins, a claimant always raises the epoch, and every session write that was
decided under an older record fails its own compare. Leases, heartbeats and the slot table only say *when* to try. A
wrong guess costs a handover, never a session.

The answer to a claim also shows the last write of the replaced owner: the revision of its commit marker. All its writes
in the slot are at or below the larger of that revision and that of the replaced owner record.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from understudy.statesync.etcd.client import Compare, CreateRevision, Get, ModRevision, Operation, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import FailoverRecord, Member, Owner, Phase, Table
from understudy.statesync.pool.state import At

CLAIM_MOST = 100
"""Slots per claim transaction: owner records, failover record and markers stay below etcd's 128 operations."""
DRAIN = "drain"
REBALANCE = "rebalance"
CUT_OFF = "it cannot reach etcd"
"""The end of the cause when the owner was alive and said so, but could neither write nor hand the slot over."""
UNFIT = "unfit: "
"""The start of the cause when the owner gave the slot away because it could not serve well; the reason follows."""


_OF_SITE = re.compile(r"site ([^:]+) (?:offline|online)")


def site_cause(sites: Iterable[str], *, offline: bool) -> str:
    """The cause of moves by which whole sites are taken out of service, or brought back."""
    return f"site {', '.join(sorted(sites))} {'offline' if offline else 'online'}"


def sites_in(cause: str) -> str:
    """The sites that a cause is about, joined by commas; '' if it is not about any."""
    found = _OF_SITE.fullmatch(cause)
    return found[1] if found else ""


def is_handover(cause: str) -> bool:
    """Whether this cause is that of a handover; the cause of a takeover says which member was lost, and how."""
    return cause in (DRAIN, REBALANCE) or cause.startswith(UNFIT) or sites_in(cause) != ""


@dataclass(frozen=True, slots=True)
class View:
    """What a member knows when it decides; ``table_revision`` is when the table was written (0: never)."""

    me: str
    boot: str
    table: Table
    table_revision: int
    owners: Mapping[int, At[Owner]]
    members: Mapping[str, At[Member]]

    def owner(self, slot: int) -> Owner | None:
        """The slot's owner record, or None before the first claim."""
        at = self.owners.get(slot)
        return at.record if at else None

    def mine(self, slot: int) -> bool:
        """Whether the owner record names this very process."""
        owner = self.owner(slot)
        return owner is not None and owner.active == self.me and owner.boot == self.boot

    def replaced(self, owner: Owner) -> bool:
        """Whether the owner's process has a successor of the same name, so that it is surely history."""
        member = self.members.get(owner.active)
        return member is not None and member.record.boot != owner.boot

    def named_lost(self, member: str, boot: str) -> bool:
        """Whether the table names this process of a member lost."""
        lost = self.table.lost.get(member)
        return lost is not None and lost.boot == boot

    def suspected(self, slot: int, owner: Owner) -> bool:
        """Whether there is a first witness against the owner.

        That is: the table names it lost, its record is gone from etcd, or a table newer than the owner record has no
        part for it in the slot any more (it is down and may be unable to hand over; if it lives it will).
        """
        if self.named_lost(owner.active, owner.boot) or owner.active not in self.members:
            return True
        return self.table_revision > self.owners[slot].revision and owner.active not in self.table.orders[slot]


@dataclass(frozen=True, slots=True)
class ClaimFree:
    """Claim slots that need no second witness: never owned, or owned by a process that has a successor."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Claim slots of an owner against whom there is one witness, once a second one agrees."""

    member: str
    boot: str
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give a slot of ours to the member that the table names."""

    slot: int
    to: str


@dataclass(frozen=True, slots=True)
class Undo:
    """Take back a handover that this process no longer carries out."""

    slot: int


Step = ClaimFree | TakeOver | HandOver | Undo


def next_steps(view: View, *, handing_over: frozenset[int] = frozenset()) -> list[Step]:
    """What ``view.me`` should do now, in the order in which it matters: take over, claim, hand over."""
    free: list[int] = []
    suspects: dict[tuple[str, str], list[int]] = {}
    handovers: list[Step] = []
    for slot in range(view.table.slots):
        wanted = view.table.active_of(slot)
        owner = view.owner(slot)
        if owner is None or view.replaced(owner):
            if wanted == view.me:
                free.append(slot)
        elif view.mine(slot):
            handovers.extend(_own_slot(view, slot, owner, wanted, handing_over))
        elif wanted == view.me and view.suspected(slot, owner):
            suspects.setdefault((owner.active, owner.boot), []).append(slot)
    steps: list[Step] = [TakeOver(member, boot, tuple(slots)) for (member, boot), slots in suspects.items()]
    if free:
        steps.append(ClaimFree(tuple(free)))
    return steps + handovers


def _own_slot(view: View, slot: int, owner: Owner, wanted: str | None, handing_over: frozenset[int]) -> Sequence[Step]:
    if slot in handing_over:
        return ()
    if owner.phase is Phase.HANDOVER:
        return (Undo(slot),)
    if wanted is None or wanted == view.me or view.owners[slot].revision > view.table_revision:
        return ()  # a table older than the owner record does not know of the last change: no reason to undo it
    target = view.members.get(wanted)
    if target is None or not target.record.state.may_hold_slots:
        return ()
    if view.named_lost(wanted, target.record.boot):
        return ()  # Envoy sends it nothing either; the table that has heard of its return says what it gets
    return (HandOver(slot, wanted),)


def standbys_of(view: View, slot: int) -> tuple[str, ...]:
    """Who may serve ``slot`` if its owner does not, best first: the table's order without the owner."""
    owner = view.owner(slot)
    order = view.table.orders[slot] if slot < view.table.slots else ()
    return tuple(member for member in order if owner is None or member != owner.active)


@dataclass(frozen=True, slots=True)
class Claimed:
    """One slot in a claim: the record to write, and the revision (0: none) of the one it replaces."""

    slot: int
    owner: Owner
    replaces: int
    replaced_active: str


def claim(view: View, slots: Sequence[int], *, cause: str, traceparent: str, now: float) -> list[Claimed]:
    """The owner records by which ``view.me`` claims ``slots``, each one epoch above the record that it replaces."""
    claims = []
    for slot in slots:
        at = view.owners.get(slot)
        epoch = at.record.epoch + 1 if at else 1
        record = Owner(view.me, view.boot, epoch, cause=cause, traceparent=traceparent, since=now)
        claims.append(Claimed(slot, record, at.revision if at else 0, at.record.active if at else ""))
    return claims


def claim_transaction(
    keys: PoolKeys, claims: Sequence[Claimed], extra: Sequence[Put] = ()
) -> tuple[list[Compare], list[Operation], list[Operation]]:
    """Compares, success and failure of a claim.

    Success answers, after the puts, one ``Get`` per distinct replaced member (in :func:`replaced_members` order): its
    commit marker. Failure answers one ``Get`` of the owner record per claim.
    """
    compares: list[Compare] = [
        ModRevision(keys.owner(c.slot), c.replaces) if c.replaces else CreateRevision(keys.owner(c.slot), 0)
        for c in claims
    ]
    success: list[Operation] = [Put(keys.owner(c.slot), c.owner.encode()) for c in claims]
    success.extend(extra)
    success.extend(Get(keys.commit(member)) for member in replaced_members(claims))
    return compares, success, [Get(keys.owner(c.slot)) for c in claims]


def replaced_members(claims: Sequence[Claimed]) -> list[str]:
    """The members that the claims replace, each once, in order of appearance."""
    return list(dict.fromkeys(c.replaced_active for c in claims if c.replaced_active))


class FailoverLog:
    """The failover records of this member: one per failover and source. A record grows as slots are taken."""

    def __init__(self, keys: PoolKeys, me: str) -> None:
        self._keys = keys
        self._me = me
        self._records: dict[str, FailoverRecord] = {}

    def add(self, trace: str, source: str, taken: Mapping[int, int], *, cause: str, planned: bool, now: float) -> Put:
        """The put that notes slots (mapped to their new epochs) as taken, with all noted before in this failover."""
        key = self._keys.failover(trace, self._me, source)
        before = self._records.get(key) or FailoverRecord(trace, self._me, source, cause, planned, (), (), now)
        epochs = {**dict(zip(before.slots, before.epochs, strict=True)), **taken}
        record = replace(before, slots=tuple(epochs), epochs=tuple(epochs.values()))
        self._records[key] = record
        return Put(key, record.encode())

    def without(self, trace: str, source: str, slots: Collection[int]) -> Put | None:
        """The put that records that ``slots`` were not taken over; None if nothing else was."""
        key = self._keys.failover(trace, self._me, source)
        before = self._records.pop(key, None)
        if before is None:
            return None
        kept = {slot: epoch for slot, epoch in zip(before.slots, before.epochs, strict=True) if slot not in slots}
        if not kept:
            return None
        self._records[key] = replace(before, slots=tuple(kept), epochs=tuple(kept.values()))
        return Put(key, self._records[key].encode())


def start_handover(owner: Owner, to: str, *, cause: str, traceparent: str, now: float) -> Owner:
    """The record by which the owner stops writing in favour of ``to``; the epoch stays until ``to`` commits itself."""
    return replace(owner, phase=Phase.HANDOVER, to=to, cause=cause, traceparent=traceparent, since=now)


def finish_handover(owner: Owner, boot: str, *, now: float) -> Owner:
    """The record by which the target of a handover commits itself as active."""
    return replace(owner, active=owner.to, boot=boot, epoch=owner.epoch + 1, phase=Phase.STABLE, to="", since=now)


def take_up(owner: Owner, *, now: float) -> Owner:
    """The record by which an owner serves a slot again that it had given up, which the old record does not allow."""
    return replace(owner, epoch=owner.epoch + 1, phase=Phase.STABLE, to="", cause="etcd reached again", since=now)


def undo_handover(owner: Owner, *, now: float) -> Owner:
    """The record by which the owner takes a handover back; with a new epoch, since others saw the old one end."""
    return replace(owner, epoch=owner.epoch + 1, phase=Phase.STABLE, to="", cause="handover undone", since=now)
