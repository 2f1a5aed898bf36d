"""Which slots wait for an operator, because all processes with their newest writes are gone. Pure.

The records in etcd do not say which deaths are proven: each member finds that out for itself. So a slot is listed from
the moment in which no process of its sync set is registered any more, although a member may be about to claim it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from understudy.deploy.inspect.member_views import View
from understudy.deploy.inspect.views import ranges
from understudy.statesync.pool.ownership import agreed_set, holders, process_of
from understudy.statesync.pool.records import Owner, Revival
from understudy.statesync.pool.state import PoolState
from understudy.statesync.replication.sync_set import Process


@dataclass(frozen=True, slots=True)
class WaitingSlot:
    """A slot that has no active, and whose newest writes may be in memory of processes that are not registered.

    ``fence`` is the revision of its owner record. ``missing`` are the processes that may have its newest writes;
    ``restarted`` are those of them whose member has another process by now, so that their death is proven.
    ``revival`` is the word that an operator has already given.
    """

    slot: int
    owner: Owner
    fence: int
    missing: tuple[Process, ...]
    restarted: tuple[Process, ...]
    waits_by_spec: bool
    revival: Revival | None

    @property
    def reason(self) -> str:
        """Why nobody serves the slot."""
        if self.revival is not None:
            return f"{self.revival.by} has given up its newest writes, and no member has claimed it yet"
        unproven = [one.member for one in self.missing if one not in self.restarted]
        if self.waits_by_spec:
            return "all processes with its newest writes are gone, and the spec says on_total_loss: wait"
        if unproven:
            return f"the death of {_and(unproven)} is not proven, and nobody else has its newest writes"
        return "all processes with its newest writes are gone; a member is about to restore it"


def waiting_slots(state: PoolState) -> list[WaitingSlot]:
    """The slots that nobody serves, although they have an owner record, and nobody can serve from memory."""
    return [one for slot in sorted(state.owners) if isinstance(one := _found(state, slot), WaitingSlot)]


def refusal(state: PoolState, slot: int) -> str:
    """Why a slot must not be revived; '' if it may be."""
    found = _found(state, slot)
    return found if isinstance(found, str) else ""


def waiting_view(state: PoolState) -> View:
    """The output of ``slots waiting``."""
    return {
        "pool": state.keys.pool,
        "waiting": [
            {
                "slot": one.slot,
                "epoch": one.owner.epoch,
                "active": one.owner.active,
                "missing": [{"member": process.member, "boot": process.boot} for process in one.missing],
                "restarted": sorted({process.member for process in one.restarted}),
                "reason": one.reason,
            }
            for one in waiting_slots(state)
        ],
    }


def waiting_warning(state: PoolState) -> Iterable[str]:
    """The line of ``status`` about such slots, if there are any."""
    waiting = waiting_slots(state)
    if waiting:
        slots = ranges(one.slot for one in waiting)
        yield (
            f"no living process has the newest writes of slots {slots}: "
            "'understudy slots waiting' says why they are not served"
        )


def loss_of(state: PoolState, slots: Iterable[WaitingSlot]) -> str:
    """What is given up with these slots, in words."""
    slots = list(slots)
    members = sorted({process.member for one in slots for process in one.missing})
    checkpoint = state.spec.record.replication.checkpoint_ms / 1000 if state.spec else 1.0
    return (
        f"the newest 'replicas' writes of slots {ranges(one.slot for one in slots)} were in the memory of "
        f"{_and(members)}, which are not registered any more. The slots go on with what etcd has. That lacks "
        f"'replicas' writes of the last {checkpoint:g} s before the loss, or since etcd went away if it was away "
        f"then. If {_and(members, 'or')} still runs, all 'replicas' writes that it answers from now on are lost as well"
    )


def _found(state: PoolState, slot: int) -> WaitingSlot | str:
    """The slot, if it waits; a text: why not."""
    at, sync = state.owners.get(slot), state.sync_sets.get(slot)
    if at is None:
        return "it has no owner record: a member claims it as soon as the slot table says so"
    owner = at.record
    agreed = agreed_set(owner, sync)
    active = process_of(owner)
    if _registered(state, active):
        return f"{owner.active} serves it"
    if not agreed.memory:
        return "etcd has all its acknowledged writes: any member claims it without loss"
    living = sorted(one.member for one in agreed.members if _registered(state, one))
    if living:
        return (
            f"{_and(living)} is registered and has its newest writes, so it takes the slot over; "
            "stop it first if it cannot"
        )
    former = sorted(one.member for one in agreed.former if _registered(state, one))
    if len(former) > 1:
        return f"the former actives {_and(former)} are registered, and may have newer writes: stop all but one"
    missing = tuple(sorted(one for one in holders(owner, agreed) if not _registered(state, one)))
    word = state.revivals.get(slot)
    return WaitingSlot(
        slot,
        owner,
        at.revision,
        missing,
        tuple(one for one in missing if one.member in state.members),
        state.spec is not None and state.spec.record.replication.on_total_loss == "wait",
        word.record if word is not None and word.record.epoch == owner.epoch else None,
    )


def _registered(state: PoolState, process: Process) -> bool:
    at = state.members.get(process.member)
    return at is not None and at.record.boot == process.boot


def _and(names: list[str], word: str = "and") -> str:
    names = list(dict.fromkeys(names))
    return f" {word} ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
