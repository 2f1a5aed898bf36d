"""Reads from memory: under a read deadline, and without etcd by promises of the other members."""

from collections.abc import Callable, Iterator
from functools import partial

from tests.model.explorer import Violation
from tests.model.replication.active import after_change, needed, settled, visible
from tests.model.replication.claims import spend
from tests.model.replication.ownership import learned
from tests.model.replication.world import (
    Bounds,
    Member,
    Promise,
    Rules,
    World,
    agreed,
    name_of,
    runs,
    with_member,
)

Step = tuple[str, Callable[[], World]]


# -- the read deadline --


def looking(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    """Reads of the owner record, and what readers are answered from memory until the deadline that these set."""
    name = name_of(number)
    if member.look is not None:
        yield f"{name}'s look comes back", partial(_look_back, world, rules, number, member)
    elif world.spent.looks < bounds.looks and member.looked < world.records.owner.revision:
        look = world.records.owner.revision, world.records.owner
        sent = with_member(world, number, member._replace(look=look))
        yield f"{name} looks at the owner record", partial(spend, sent, "looks")
    me = (number, member.boot)
    if not bounds.lease or not member.reading or (member.serving and not settled(world, member, me, rules)):
        return
    if member.looked >= world.passed:
        yield f"{name} answers a read from memory", partial(_read_memory, world, rules, number, member)
    elif not rules.refusals_keep_the_deadline:
        yield f"{name} refuses a conditional write from memory", partial(_read_memory, world, rules, number, member)


def _look_back(world: World, rules: Rules, number: int, member: Member) -> World:
    assert member.look is not None
    sent, found = member.look
    since = sent if rules.deadlines_count_from_sending else world.records.owner.revision
    looked = member._replace(look=None, looked=max(member.looked, since))
    if found.revision > member.view.owner.revision:
        looked = learned(looked, member.view._replace(owner=found))
    return with_member(world, number, looked)


def _read_memory(world: World, rules: Rules, number: int, member: Member) -> World:
    me = (number, member.boot)
    log = member.log[: visible(world, member, me, rules)] if member.serving else member.log
    known = world.acknowledged | world.seen
    shown = frozenset(log) if member.serving else known.intersection(log)
    missing = known - shown
    if missing:
        raise Violation(f"no stale read: {name_of(number)} does not know {sorted(missing)}")
    return world._replace(seen=world.seen | shown)


# -- reads without etcd --


def asking(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    """An active asks the others not to serve, and reads while they have promised it."""
    name, me = name_of(number), (number, member.boot)
    if member.asked == 0 and world.spent.questions < bounds.questions:
        asker = member._replace(asked=len(world.askers) + 1, promises=frozenset())
        asked = with_member(world, number, asker)._replace(askers=(*world.askers, me))
        yield f"{name} asks how long it may read", partial(spend, asked, "questions")
    if not member.asked or member.asked in world.expired:
        return
    promised = needed(member, rules) - {me} <= member.promises
    if not rules.every_member_promises:
        promised = bool(member.promises)
    after, epoch = after_change(member), member.view.owner.epoch
    memory = agreed(member.view, rules).memory and (after is None or after.memory)
    if promised and (memory or not rules.promises_need_memory) and epoch == member.serving:
        yield f"{name} answers a read", partial(_read_by_promises, world, number, member)


def _read_by_promises(world: World, number: int, member: Member) -> World:
    missing = world.acknowledged - frozenset(member.log)
    if missing:
        raise Violation(f"no stale read: {name_of(number)} does not know {sorted(missing)}")
    return world


def promising(world: World, number: int, member: Member) -> Iterator[Step]:
    """A member that does not serve promises that it will not while a question may be counted on."""
    for question, asker in enumerate(world.askers, 1):
        waiting = world.members[asker[0]]
        if (
            asker[0] == number
            or question in member.promised
            or not runs(world, asker)
            or waiting.asked != question
            or waiting.serving < member.known
            or member.serving
        ):
            continue
        bound = with_member(world, number, member._replace(promised=member.promised | {question}))
        word = Promise((number, member.boot), asker, question)
        told = f"{name_of(number)} promises {name_of(asker[0])} not to serve"
        yield told, partial(World._replace, bound, transit=bound.transit | {word})


def promised(world: World, word: Promise) -> World:
    """The world after an asker has heard a promise."""
    member = world.members[word.to[0]]
    if not runs(world, word.to) or member.asked != word.question:
        return world
    return with_member(world, word.to[0], member._replace(promises=member.promises | {word.sender}))
