"""Keeps ownership from flapping: what the leader remembers of the last half minute, and what it therefore holds back.

Seven brakes. None ever delays a takeover from a dead, failing or draining member, except where it fails to reach etcd:

* a slot stays at least :data:`HOLD` with a new owner before the table asks it to move again;
* while a member that seems well has just been taken over from, nothing moves for :data:`HOLD`: whoever took its slots
  knows more of it, and it must not get others in their place;
* while a member that was taken over from stays away, nothing moves for :data:`ABSENCE`: its slots went to so many
  others that shares are right within a slot or two, and sessions of the living are not moved for that when it may soon
  be back;
* a member that stopped being fit :data:`LOSSES` times within :data:`LOSS_WINDOW` and owns nothing gets nothing until
  that is so long ago, while anybody steadier is there;
* if more than :data:`SURGE_SHARE` of the slots are to move within :data:`SURGE_WINDOW` although no member and no spec
  has changed meanwhile, planned moves freeze for :data:`FREEZE`, and the status says why and for how long. Then they
  may be made once: what was wanted all the time is no surge;
* for :data:`FOUND` after a server began to lead, or found etcd again, nobody is left because it cannot reach etcd: when
  etcd was away for this server as well, some members find it seconds before others, who must not lose their slots;
* a site that is in service again gets nothing until all its members have heard of it and no slot is held any more,
  :data:`HOLD` at the most, so that one table gives them their shares.

Pure: times are ns of one monotonic clock and come in as arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from understudy.statesync.pool.records import MemberState, Owner
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.membership.cluster_state import World

SECOND = 1_000_000_000
HOLD = 3 * SECOND
ABSENCE = 10 * SECOND
FOUND = 5 * SECOND
"""Members wait as long after an outage before they hold another for cut off
(``understudy.proxy.ownership.etcd_contact.GRACE``)."""
LOSSES = 3
LOSS_WINDOW = 30 * SECOND
SURGE_SHARE = 0.3
SURGE_WINDOW = 10 * SECOND
FREEZE = 30 * SECOND

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Brake:
    """One thing that is held back: why, in words for people, and until when (ns)."""

    why: str
    until: int


@dataclass(frozen=True, slots=True)
class Calm:
    """What the leader remembers. Start with an empty one; every look returns the next."""

    fit: Mapping[str, bool] = field(default_factory=dict)
    losses: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spec: PoolSpec | None = None
    began: int | None = None
    stirred: int = 0
    owners: Mapping[int, Owner] = field(default_factory=dict)
    taken: Mapping[int, int] = field(default_factory=dict)
    robbed: Mapping[str, int] = field(default_factory=dict)
    asked: tuple[tuple[int, int], ...] = ()
    frozen: Brake | None = None
    returning: Mapping[str, int] = field(default_factory=dict)
    awaited: frozenset[str] = frozenset()

    def reached(self, world: World, now: int) -> World:
        """The world in which members that cannot reach etcd are as the table has them, while its leader is new to etcd.

        One that an earlier table has left already is not given its slots back.
        """
        if not world.cut_off or world.table is None or self.began is None or now - self.began >= FOUND:
            return world
        late = {member for order in world.table.orders for member in order if member in world.cut_off}
        return replace(world, states={**world.states, **dict.fromkeys(late, MemberState.UP)})

    def found_etcd(self, at: int) -> "Calm":
        """Etcd has answered this server without an outage since ``at`` (ns)."""
        return self if self.began is None else replace(self, began=max(self.began, at))

    def look(self, world: World, now: int) -> "Calm":
        """Take in the pool as it is at ``now``."""
        fit = {member: world.state(member).may_hold_slots for member in world.members}
        lost = [member for member, was in self.fit.items() if was and not fit.get(member, False)]
        losses = {
            member: (*self.losses.get(member, ()), *((now,) if member in lost else ()))
            for member in {*self.losses, *lost}
        }
        changed = {
            slot: before
            for slot, owner in world.owners.items()
            if (before := self.owners.get(slot)) and (before.active, before.epoch) != (owner.active, owner.epoch)
        }
        robbed = [before.active for slot, before in changed.items() if _taken_over(before, world.owners[slot])]
        thawed = self.frozen is not None and now >= self.frozen.until
        returning = {site: self.returning.get(site, now) for site in _returning(world)}
        after = replace(
            self,
            fit=fit,
            losses={m: recent for m, at in losses.items() if (recent := _since(at, now - LOSS_WINDOW))},
            spec=world.spec,
            owners=dict(world.owners),
            taken=_recent(self.taken, now) | dict.fromkeys(changed, now),
            robbed={
                member: at
                for member, at in {**self.robbed, **dict.fromkeys(robbed, now)}.items()
                if now - at < _mourned(fit.get(member, False))
            },
            asked=tuple((at, slots) for at, slots in self.asked if now - at < SURGE_WINDOW),
            frozen=None if thawed else self.frozen,
            returning=returning,
        )
        early = [site for site, at in returning.items() if now - at < HOLD]
        after = replace(after, awaited=frozenset(s for s in early if _unheard_in(world, s) or after.held(world)))
        released = after.unsteady().keys() != self.unsteady().keys()
        explained = fit != self.fit or world.spec != self.spec or released or thawed
        return replace(after, stirred=now if explained else self.stirred)

    def steadied(self, world: World) -> World:
        """The world with unsteady members that own nothing as members that are still starting, and sites still offline.

        Unless nobody steady is fit: then the last owner is about to go, and an unsteady member is better than none.
        """
        waiting = replace(world, offline=world.offline | self.awaited)
        if any(waiting.state(member).may_hold_slots for member in waiting.members):
            world = waiting
        owning = {owner.active for owner in world.owners.values()}
        unsteady = {brake_of for brake_of in self.unsteady() if brake_of not in owning}
        steady = any(world.state(member).may_hold_slots and member not in unsteady for member in world.members)
        if not unsteady or not steady:
            return world
        states = {member: MemberState.INIT if member in unsteady else state for member, state in world.states.items()}
        return replace(world, states=states)

    def unsteady(self) -> dict[str, Brake]:
        """Members that stopped being fit too often of late."""
        return {
            member: Brake(
                f"{member} failed {len(at)} times within {LOSS_WINDOW // SECOND} s", at[-LOSSES] + LOSS_WINDOW
            )
            for member, at in self.losses.items()
            if len(at) >= LOSSES
        }

    def held(self, world: World) -> frozenset[int]:
        """The slots that no table may ask to move from a member that serves them well."""
        slots = world.owners.keys() if self.robbed or self.frozen is not None else self.taken.keys()
        return frozenset(slot for slot in slots if _well_served(world, slot))

    def ask(self, world: World, orders: tuple[tuple[str, ...], ...], now: int) -> "Calm":
        """Take in that a table with ``orders`` is to be written; the result may be frozen, and then it must not be."""
        before = world.table.orders if world.table else ()
        moves = sum(
            slot < len(before) and order[:1] != before[slot][:1] and _well_served(world, slot)
            for slot, order in enumerate(orders)
        )
        if not moves or now - self.stirred < SURGE_WINDOW:
            return self
        asked = (*self.asked, (now, moves))
        total = sum(slots for _, slots in asked)
        if total <= SURGE_SHARE * len(orders):
            return replace(self, asked=asked)
        why = f"{total} of {len(orders)} slots were to move within {SURGE_WINDOW // SECOND} s without a cause"
        return replace(self, frozen=Brake(why, now + FREEZE))

    def brakes(self) -> list[Brake]:
        """What holds planned moves back now, except for slots that are simply new to their owner."""
        frozen = [self.frozen] if self.frozen is not None else []
        return [*frozen, *self.unsteady().values()]

    def look_again(self, now: int) -> float | None:
        """Seconds until the first brake comes off; None if there is none."""
        ends = [brake.until for brake in self.brakes()]
        ends += [self.returning[site] + HOLD for site in self.awaited]
        ends += [self.began + FOUND] if self.began is not None and now - self.began < FOUND else []
        ends += [at + HOLD for at in self.taken.values()]
        ends += [at + _mourned(self.fit.get(member, False)) for member, at in self.robbed.items()]
        return max(min(ends) - now, 0) / SECOND if ends else None


def _mourned(fit: bool) -> int:
    """How long nothing moves after a member was taken over from."""
    return HOLD if fit else ABSENCE


def _well_served(world: World, slot: int) -> bool:
    owner = world.serving_owner(slot)
    return owner is not None and world.state(owner).may_hold_slots


def _returning(world: World) -> frozenset[str]:
    """Sites that the table calls offline and no operator does any more."""
    return frozenset(world.table.offline if world.table else ()) - world.offline


def _unheard_in(world: World, site: str) -> bool:
    """Whether some member of the site still says that it is leaving."""
    return any(world.site(member) == site and world.state(member) is MemberState.DRAINING for member in world.members)


def _taken_over(before: Owner, now: Owner) -> bool:
    """Whether a slot went from one member to another without having been handed over."""
    return now.active not in (before.active, before.to)


def _recent(changes: Mapping[_Key, int], now: int) -> dict[_Key, int]:
    return {key: at for key, at in changes.items() if now - at < HOLD}


def _since(times: tuple[int, ...], begin: int) -> tuple[int, ...]:
    return tuple(at for at in times if at >= begin)
