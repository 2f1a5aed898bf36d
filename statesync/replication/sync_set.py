"""The sync set of a slot: who must have a write before it is acknowledged, and who may claim the slot. Pure.

The sync set stands in a record of its own beside the slot's owner record. Every change of either compares both; only
saves compare the owner record alone. These functions say what the active may do with the set that etcd has confirmed
and the change that is under way, and what another member may claim. ``tests/model/replication`` explores them, and
breaks each rule in turn.

The family of the protocol: PacificA (Lin et al., MSR-TR-2008-25), Kafka's in-sync replicas (KIP-966, KIP-903),
Patroni's synchronous mode.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import NamedTuple


class Process(NamedTuple):
    """A member and its boot. A process that starts again has forgotten everything, so it is another one."""

    member: str
    boot: str


class SyncSet(NamedTuple):
    """What the sync record says about the copies of a slot.

    ``members`` are the processes that must have a write before it is acknowledged. The active is one of them.
    ``memory``: acknowledged writes may be in the memory of these processes only; without it, etcd has all of them.
    ``former`` are actives before this one that may have acknowledged a write which etcd does not have. It is empty
    without ``memory``.
    """

    members: frozenset[Process]
    memory: bool = False
    former: frozenset[Process] = frozenset()


class Progress(NamedTuple):
    """How far the writes of a slot are, as its active knows; each number is the last write of which it is true.

    ``confirmed``: what each other process has, in memory. ``sent``: a transaction that saves it in etcd has been sent.
    ``saved``: etcd has it, and all before it. ``acknowledged``: its client was told or a reader has seen it, by this
    active or perhaps by one before it.

    ``kept_back`` is the first write that is not saved because this active has a later one to the same session that it
    had before its epoch, and not all have that one; 0: there is none.
    """

    last: int
    confirmed: Mapping[Process, int]
    sent: int = 0
    saved: int = 0
    acknowledged: int = 0
    kept_back: int = 0


class Removal(NamedTuple):
    """The set after a removal. ``saves``: the same transaction saves what is acknowledged and not saved yet."""

    sync: SyncSet
    saves: bool = False


class Source(StrEnum):
    """Where a new active has the sessions from: its own memory, or etcd."""

    MEMORY = "memory"
    ETCD = "etcd"


class Claim(NamedTuple):
    """How a process may claim a slot. ``loss``: acknowledged writes may be missing, those of class ``replicas``."""

    sync: SyncSet
    source: Source
    loss: bool = False


def needed(agreed: SyncSet, change: SyncSet | None) -> frozenset[Process]:
    """The processes that must have a write before it counts.

    While a change is under way, or its outcome is unknown, both sets may be in force.
    """
    return agreed.members | change.members if change is not None else agreed.members


def held(agreed: SyncSet, change: SyncSet | None, me: Process, progress: Progress) -> int:
    """The last write that all have that must have it, and that may be saved in etcd.

    Nothing later is saved: a claim from memory could not know of it, and it would come back with a later claim from
    etcd, although its request is over by then.
    """
    confirmed = progress.confirmed
    return min([progress.last, *(confirmed.get(other, 0) for other in needed(agreed, change) if other != me)])


def savable(agreed: SyncSet, change: SyncSet | None, me: Process, progress: Progress) -> int:
    """The last write up to which everything may be saved in etcd.

    The active before this one may have saved the later write to a session. An earlier one must not replace it there, so
    it waits until all have the later one.
    """
    in_memory = held(agreed, change, me, progress)
    return min(in_memory, progress.kept_back - 1) if progress.kept_back else in_memory


def acknowledges_from_memory(agreed: SyncSet, change: SyncSet | None) -> bool:
    """Whether a write of class ``replicas`` may be acknowledged before etcd has it.

    Its record must say so first, two processes must have it, and no change may be under way that takes ``memory`` back:
    if that has taken effect, anybody may claim from etcd.
    """
    return agreed.memory and (change is None or change.memory) and len(needed(agreed, change)) > 1


def visible(agreed: SyncSet, change: SyncSet | None, me: Process, progress: Progress) -> int:
    """The last write that readers may see: what no single death can take back."""
    in_memory = held(agreed, change, me, progress)
    return in_memory if acknowledges_from_memory(agreed, change) else min(in_memory, progress.saved)


def announced(agreed: SyncSet) -> SyncSet | None:
    """The set that allows writes of class ``replicas``; None if it already does, or has one process only."""
    return None if agreed.memory or len(agreed.members) < 2 else agreed._replace(memory=True)


def all_saved(agreed: SyncSet, progress: Progress) -> SyncSet | None:
    """The set after everything acknowledged was saved; None if it is not, or the record says so already."""
    if not agreed.memory or progress.saved < progress.acknowledged:
        return None
    return SyncSet(agreed.members)


def without(agreed: SyncSet, lost: Collection[Process], me: Process, progress: Progress) -> Removal | None:
    """How to take processes that do not confirm out of the set; None if something must be saved in etcd first.

    A process that stays alone in the set may not be the only one to have an acknowledged write. What all have can be
    saved before. The rest is what this active had as a copy and does not know to be acknowledged. It may be saved only
    if the set changes with it: a process that is still in the set could claim without having it. No other save of the
    slot may be under way at the same time: if it comes first, this one would replace what is newer.
    """
    members = agreed.members.difference(lost) | {me}
    if len(members) > 1 or not agreed.memory:
        return Removal(agreed._replace(members=members))
    if progress.saved < min(progress.acknowledged, savable(agreed, None, me, progress)):
        return None
    return Removal(SyncSet(members), saves=progress.saved < progress.acknowledged)


def with_learner(agreed: SyncSet, learner: Process, progress: Progress) -> SyncSet | None:
    """The set with a process that has caught up; None while it lacks something.

    It must have everything that was acknowledged, in whatever class, and everything that etcd may have. It is no longer
    a former active: it follows this one.
    """
    if progress.confirmed.get(learner, -1) < max(progress.acknowledged, progress.sent):
        return None
    return SyncSet(agreed.members | {learner}, agreed.memory, agreed.former - {learner})


def handed_over(agreed: SyncSet, me: Process, to: Process) -> SyncSet | None:
    """The set under another active, which is one of it; None if it is not."""
    if to not in agreed.members:
        return None
    return agreed._replace(former=_former(agreed, me))


def claim(agreed: SyncSet, active: Process, me: Process, dead: Collection[Process]) -> Claim | None:
    """How ``me`` may claim the slot of ``active``, once its death is witnessed; None if it may not.

    Args:
        agreed: the sync set that the claim replaces.
        active: the active of the owner record.
        me: the process that wants to claim.
        dead: the processes that are proven dead: refused by a live host, or another boot is registered. Silence proves
            nothing.

    A process of the set has everything that was acknowledged, so it claims from memory and keeps the others in the set:
    a second death at once loses nothing. Without ``memory`` anybody else may claim from etcd. With it, others may claim
    when the set is gone, and so is every other former active: one that lives may have more than etcd has. A former
    active itself may claim then, from etcd as well: what only its copy has is lost.
    """
    if me in agreed.members:
        members = agreed.members - {active} | {me}
        return Claim(SyncSet(members, agreed.memory, _former(agreed, active) - {me}), Source.MEMORY)
    alone = frozenset({me})
    if not agreed.memory:
        return Claim(SyncSet(alone), Source.ETCD)
    gone = (agreed.members | agreed.former | {active}) - {me}
    if not gone.issubset(dead):
        return None
    return Claim(SyncSet(alone), Source.ETCD, loss=True)


def resigned(agreed: SyncSet, active: Process, me: Process, dead: Collection[Process]) -> SyncSet | None:
    """The set after ``me`` has given up what it has as a former active; None if it does not have to.

    When the whole set of ``active`` is gone, no former active may claim while another one lives, which may go on
    acknowledging until it hears of its successor. ``me`` has heard, and says so by leaving ``former``. The first of
    those that live stays, and claims when it alone is left.
    """
    living = agreed.former.difference(dead) | {me}
    if me not in agreed.former or me == min(living) or not (agreed.members | {active}).issubset(dead):
        return None
    return agreed._replace(former=agreed.former - {me})


def _former(agreed: SyncSet, active: Process) -> frozenset[Process]:
    return agreed.former | {active} if agreed.memory else frozenset()
