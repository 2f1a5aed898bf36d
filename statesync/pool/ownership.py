"""Ownership of slots: what a member knows of it, and which steps it should take. Pure.

Claims are in :mod:`understudy.statesync.pool.claims`; how the records change is in
:mod:`understudy.statesync.pool.owner_records`.

Fencing is one rule: an owner record is only replaced by a transaction that compares the ``mod_revision`` at which it
was last seen. So one of two claimants wins, a claimant always raises the epoch, and every session write that was
decided under an older record fails its own compare. Leases, heartbeats and the slot table only say *when* to try. A
wrong guess costs a handover, never a session.

Each slot has a sync record beside its owner record. It says which processes have the acknowledged writes in memory, by
the rules of :mod:`understudy.statesync.replication.sync_set`. It is valid only in the epoch of the owner record. Each
transaction that raises the epoch compares both records. So it never succeeds beside a change of the sync set that it
does not know of. Slots of release 0.1.0 have no sync record: there etcd has everything.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from understudy.statesync.pool.predicted import PREDICTED
from understudy.statesync.pool.records import Member, Owner, Phase, Revival, SyncRecord, Table
from understudy.statesync.pool.state import At
from understudy.statesync.replication.sync_set import Process, SyncSet

DRAIN = "drain"
REBALANCE = "rebalance"
CUT_OFF = "it cannot reach etcd"
"""The end of the cause when the owner was alive and said so, but could neither write nor hand the slot over."""
UNFIT = "unfit: "
"""The start of the cause when the owner gave the slot away because it could not serve well; the reason follows."""


_OF_SITE = re.compile(r"site ([^:]+) (?:offline|online|serves: .+)")


def site_cause(sites: Iterable[str], *, offline: bool) -> str:
    """The cause of moves by which whole sites are taken out of service, or brought back."""
    return f"site {', '.join(sorted(sites))} {'offline' if offline else 'online'}"


def switch_cause(sites: Iterable[str], why: str) -> str:
    """The cause of moves to the sites that serve from now on, because of the grades that ``why`` tells."""
    return f"site {', '.join(sorted(sites))} serves: {why}"


def sites_in(cause: str) -> str:
    """The sites that a cause is about, joined by commas; '' if it is not about any."""
    found = _OF_SITE.fullmatch(cause)
    return found[1] if found else ""


def is_handover(cause: str) -> bool:
    """Whether this cause is that of a handover; the cause of a takeover says which member was lost, and how."""
    return cause in (DRAIN, REBALANCE) or cause.startswith((UNFIT, PREDICTED)) or sites_in(cause) != ""


@dataclass(frozen=True, slots=True)
class View:
    """What a member knows when it decides; ``table_revision`` is when the table was written (0: never).

    ``restores``: the spec lets a slot go on with what etcd has, when all processes with its newest writes have died.
    """

    me: str
    boot: str
    table: Table
    table_revision: int
    owners: Mapping[int, At[Owner]]
    members: Mapping[str, At[Member]]
    sync_sets: Mapping[int, At[SyncRecord]] = field(default_factory=dict)
    restores: bool = True
    revivals: Mapping[int, At[Revival]] = field(default_factory=dict)

    @property
    def process(self) -> Process:
        """This very process."""
        return Process(self.me, self.boot)

    def owner(self, slot: int) -> Owner | None:
        """The slot's owner record, or None before the first claim."""
        at = self.owners.get(slot)
        return at.record if at else None

    def revival(self, slot: int) -> Revival | None:
        """The operator's word that a slot may go on without its newest writes, if it is about the owner record."""
        owner, at = self.owner(slot), self.revivals.get(slot)
        return at.record if owner is not None and at is not None and at.record.epoch == owner.epoch else None

    def given_up(self, slot: int) -> frozenset[Process]:
        """The processes that an operator has given up for a slot: none that is registered."""
        owner, agreed = self.owner(slot), self.memory_of(slot)
        if owner is None or agreed is None or self.revival(slot) is None:
            return frozenset()
        return frozenset(one for one in holders(owner, agreed) if not self.registered(one))

    def registered(self, process: Process) -> bool:
        """Whether a member's record names this very process."""
        at = self.members.get(process.member)
        return at is not None and at.record.boot == process.boot

    def memory_of(self, slot: int) -> SyncSet | None:
        """The slot's sync set if it says that writes may be in the memory of its processes alone; else None."""
        owner, at = self.owner(slot), self.sync_sets.get(slot)
        agreed = at.record.sync_set() if owner is not None and at is not None and is_valid(owner, at) else None
        return agreed if agreed is not None and agreed.memory else None

    def holders_of_memory(self, slots: Iterable[int]) -> frozenset[Process]:
        """The processes that alone may have the newest writes of one of these slots."""
        sets = [agreed for slot in slots if (agreed := self.memory_of(slot)) is not None]
        return frozenset(process for agreed in sets for process in (*agreed.members, *agreed.former))

    def counts_on(self, slot: int) -> bool:
        """Whether the slot's sync set has this very process, so that its copy must stay."""
        owner = self.owner(slot)
        return owner is not None and self.process in agreed_set(owner, self.sync_sets.get(slot)).members

    def leaves_out(self, slot: int) -> bool:
        """Whether the slot's sync set surely does not have this very process: both records are known, and fit."""
        owner, at = self.owner(slot), self.sync_sets.get(slot)
        return owner is not None and is_valid(owner, at) and not self.counts_on(slot)

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


def process_of(owner: Owner) -> Process:
    """The process that an owner record makes active."""
    return Process(owner.active, owner.boot)


def holders(owner: Owner, agreed: SyncSet) -> frozenset[Process]:
    """The processes that may have acknowledged writes of a slot in memory."""
    return agreed.members | agreed.former | {process_of(owner)}


def is_valid(owner: Owner, at: At[SyncRecord] | None) -> bool:
    """Whether a sync record is there and holds: it is of the epoch of the owner record."""
    return at is not None and at.record.epoch == owner.epoch


def agreed_set(owner: Owner, at: At[SyncRecord] | None) -> SyncSet:
    """The sync set that etcd has agreed to; without a valid record the active alone, and etcd has everything."""
    if at is None or not is_valid(owner, at):
        return SyncSet(frozenset({process_of(owner)}))
    return at.record.sync_set()


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


class Undo(msgspec.Struct, frozen=True, gc=False):
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
            if is_heir(view, slot):
                free.append(slot)
        elif view.mine(slot):
            handovers.extend(_own_slot(view, slot, owner, wanted, handing_over))
        elif view.suspected(slot, owner) and is_heir(view, slot):
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


def heir_of(view: View, slot: int) -> str | None:
    """Who is to claim a slot whose owner is gone: the member that the table names.

    If the newest writes may be in memory alone, it is one that has them. When nobody has them any more, the member that
    the table names may restore the slot.
    """
    return next(iter(_holders_of_memory(view, slot)), None) or view.table.active_of(slot)


def is_heir(view: View, slot: int) -> bool:
    """Whether this process is to claim a slot whose owner is gone, or must help another one to.

    If the whole sync set is gone, that is each former active: all but one resign (:func:`resignations`).
    """
    agreed = view.memory_of(slot)
    former = agreed is not None and view.process in agreed.former and view.me in _holders_of_memory(view, slot)
    return former or heir_of(view, slot) == view.me


def standbys_of(view: View, slot: int) -> tuple[str, ...]:
    """Who may serve ``slot`` if its owner does not, best first: the table's order without the owner.

    If the newest writes may be in memory alone, those who have them come first: nobody else may claim the slot.
    """
    owner = view.owner(slot)
    order = (*_holders_of_memory(view, slot), *_order(view, slot))
    return tuple(member for member in dict.fromkeys(order) if owner is None or member != owner.active)


def _holders_of_memory(view: View, slot: int) -> list[str]:
    """The living members, in the table's order, that have writes of a slot which may be in memory alone.

    Former actives only if no process of the sync set lives: then one of them may claim.
    """
    agreed, owner = view.memory_of(slot), view.owner(slot)
    if agreed is None or owner is None:
        return []
    for group in (agreed.members, agreed.former):
        living = {
            process.member
            for process in group - {process_of(owner)}
            if view.registered(process) and not view.named_lost(*process)
        }
        if living:
            return [member for member in dict.fromkeys((*_order(view, slot), *sorted(living))) if member in living]
    return []


def _order(view: View, slot: int) -> tuple[str, ...]:
    return view.table.orders[slot] if slot < view.table.slots else ()
