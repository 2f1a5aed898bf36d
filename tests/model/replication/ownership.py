"""Changes of active with etcd's answers: handovers, their undoing, slots given away, and slots found to be ours.

An answer is late, or never comes. A member that gives up waiting acts on what its watch brings.
"""

from collections.abc import Callable, Iterator
from functools import partial

from tests.model.replication import protocol
from tests.model.replication.active import settled, stopped, takes_calls
from tests.model.replication.claims import began, claimed, claims, send, spend
from tests.model.replication.world import (
    NOBODY,
    Activate,
    Answer,
    Bounds,
    Change,
    Given,
    Member,
    Owner,
    Records,
    Rules,
    World,
    agreed,
    name_of,
    runs,
    with_member,
)
from understudy.statesync.replication.sync_set import Source, SyncSet

Step = tuple[str, Callable[[], World]]


def learned(member: Member, view: Records) -> Member:
    """The member with newer records: its epoch is over when somebody has a later one."""
    seen = member._replace(view=view, known=max(member.known, view.owner.epoch))
    return stopped(seen) if seen.serving and view.owner.epoch > seen.serving else seen


def owning(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    """What a member may do with its own slot, and to get it back."""
    name, change = name_of(number), member.change
    if change is not None:
        if change.answered and world.spent.lost_answers < bounds.lost_answers:
            yield f"{name} gives up waiting for its {change.kind}", partial(_give_up, world, number, member)
        return
    if member.serving and member.view.owner.epoch == member.serving:
        if member.view.owner.to != NOBODY:
            owner, sync = protocol.undone(member.view)
            undo = Change("undo", (number, member.boot), member.view.revisions, owner, sync, answered=True)
            yield f"{name} takes the slot back", partial(send, world, undo)
        elif takes_calls(member):
            yield from _leaving(world, rules, bounds, number, member)
            yield from _giving(world, rules, bounds, number, member)
    elif not member.serving:
        yield from _reclaiming(world, rules, bounds, number, member)


def _give_up(world: World, number: int, member: Member) -> World:
    left = frozenset(m for m in world.transit if not (isinstance(m, Answer) and m.change == member.change))
    return spend(with_member(world, number, member._replace(change=None))._replace(transit=left), "lost_answers")


# -- answers --


def answered(world: World, change: Change, *, done: bool) -> World:
    """The world with the answer on its way, if its sender waits for it."""
    member = world.members[change.sender[0]]
    if not change.answered or not runs(world, change.sender) or member.change != change:
        return world
    return world._replace(transit=world.transit | {Answer(change.sender, change, done, world.records)})


def heard(world: World, rules: Rules, bounds: Bounds, answer: Answer) -> World:
    """The world after the sender of a change has its answer."""
    number = answer.to[0]
    member = world.members[number]
    if not runs(world, answer.to) or member.change != answer.change:
        return world
    member, view = member._replace(change=None), answer.records
    if not answer.done:
        return with_member(world, number, _refused(rules, answer.change, member, view))
    if member.view.owner.revision > view.owner.revision and rules.late_answers_yield:
        return with_member(world, number, member)
    if answer.change.kind == "leave":
        return _left(world, rules, number, member, view)
    member = stopped(member)._replace(view=view, known=max(member.known, view.owner.epoch))
    serving = began(world, rules, number, member, view.owner.source)
    waits = bounds.lease and not view.owner.quiet and rules.claims_outwait_readers
    return _outwaited(serving, view.owner) if waits else serving


def _outwaited(world: World, owner: Owner) -> World:
    """The looks that were sent before an owner record have outlived their deadline."""
    return world._replace(passed=max(world.passed, owner.revision))


def _refused(rules: Rules, change: Change, member: Member, view: Records) -> Member:
    if change.kind == "undo":
        if rules.refused_undos_end_it or not member.serving:
            return learned(stopped(member), view)
        return member._replace(reading=True)
    if view.owner.revision < member.view.owner.revision:
        return member
    return learned(member, view)


# -- handing over --


def _leaving(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    if world.spent.handovers >= bounds.handovers:
        return
    me, view = (number, member.boot), member.view
    for other, peer in enumerate(world.members):
        ready = (other, peer.boot) in agreed(view, rules).members or not view.valid
        if other != number and (ready or not rules.targets_are_in_the_set):
            record = protocol.leaving(view.owner, other)
            leave = Change("leave", me, view.revisions, record, None, both=False, answered=True)
            told = f"{name_of(number)} hands over to {name_of(other)}"
            yield told, partial(spend, send(world, leave), "handovers")


def _left(world: World, rules: Rules, number: int, member: Member, view: Records) -> World:
    """The record says that the slot leaves: reads end, and the target is told."""
    if not member.serving:
        return with_member(world, number, member)
    quiet = member._replace(view=view, reading=not rules.reads_end_before_the_target_is_told)
    word = Activate(view.owner.to, view.owner.revision)
    return with_member(world, number, quiet)._replace(transit=world.transit | {word})


def told(world: World, rules: Rules, word: Activate) -> Iterator[Step]:
    """The target of a handover commits itself, if the record is still the one that it was told of."""
    number = word.to
    member = world.members[number]
    if not member.alive or member.serving or member.change is not None:
        return
    view = member.view if member.view.owner.revision >= word.revision else world.records
    if view.owner.revision != word.revision or view.owner.to != number:
        return
    at, me = view, (number, member.boot)
    if not rules.targets_are_in_the_set and view.valid:
        grown = view.sync.sync._replace(members=view.sync.sync.members | {me})
        at = view._replace(sync=view.sync._replace(sync=grown))
    written = protocol.finished(at, member.boot)
    if written is None or (written[0].source is Source.MEMORY and not member.follows):
        return
    owner, sync = written
    if not rules.receivers_of_old_slots_read_etcd:
        owner = owner._replace(source=Source.MEMORY)
    finish = Change("finish", me, view.revisions, owner, sync, answered=True)
    ready = with_member(world._replace(transit=world.transit - {word}), number, learned(member, view))
    yield f"{name_of(number)} is told to take over", partial(send, ready, finish)


# -- giving away --


def _giving(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    if world.spent.gifts >= bounds.gifts or not settled(world, member, (number, member.boot), rules):
        return
    revision = member.view.owner.revision
    without = stopped(member)._replace(given=revision, reading=not rules.giving_ends_reads)
    for other, peer in enumerate(world.members):
        if other != number and peer.alive:
            after = with_member(world, number, without)._replace(transit=world.transit | {Given(other, revision)})
            yield f"{name_of(number)} gives the slot away to {name_of(other)}", partial(spend, after, "gifts")


def taken(world: World, rules: Rules, bounds: Bounds, word: Given) -> Iterator[Step]:
    """A member claims what it was given, without a wait for the owner's reads."""
    member = world.members[word.to]
    busy = member.serving or member.change is not None or not member.alive
    if busy or member.view.owner.revision != word.revision:
        return
    told = world._replace(transit=world.transit - {word})
    for what, claim in claims(told, rules, bounds, word.to, member, quiet=True):
        yield f"{name_of(word.to)} was given the slot and {what}", partial(claimed, told, rules, claim)


# -- what the records say is ours --


def _reclaiming(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    """The owner record names this process, and it does not serve: after a moment it does, with both records read."""
    name, me, view = name_of(number), (number, member.boot), member.view
    if view.owner.active != me:
        return
    if member.given == view.owner.revision and rules.given_is_taken_up_anew:
        owner, sync = protocol.taken_up(view)
        change = Change("take up", me, view.revisions, owner, sync, answered=True)
        yield f"{name} takes up what it gave away", partial(send, world, change)
        return
    records = world.records if rules.reclaims_read_both_records else view
    owner = records.owner
    if owner.active != me or owner.epoch < member.follows or (owner.epoch == member.follows and not member.given):
        return
    alone, whole = agreed(records, rules) == SyncSet(frozenset({me})), member.follows > 0
    reads = alone and (rules.reclaims_alone_read_etcd or not whole)
    if not reads and not whole:
        return
    serving = began(world, rules, number, member._replace(view=records), Source.ETCD if reads else Source.MEMORY)
    waits = bounds.lease and rules.reclaims_outwait_readers
    after = _outwaited(serving, owner) if waits else serving
    yield f"{name} reclaims the slot from {'etcd' if reads else 'memory'}", partial(World._replace, after)
