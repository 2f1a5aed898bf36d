"""Copies of one request as a model of its own: they arrive at any later time, at any owner, with other writes between.

One slot with one session, two members, and the slot's history: the writes that count, since all of the sync set have
them, or etcd has. Such a write may change the session, record the outcome of a request, or both. A new owner has the
whole history, in memory or from etcd; how it gets there is in ``tests/model/replication``. Every request has one verb
and may be delivered several times, each time to whoever believes to own the slot. Time is abstract: a request is
*young* (every owner carries it out), then *ageing* (owners' clocks differ: some carry it out, some refuse it), then
*old* (every owner refuses it). Outcomes may be forgotten once it is old.

What each write does is decided by ``understudy.statesync.sessions.session``. Checked in every state: no request has two
effects, and none has an effect after or before its client was told that it was refused.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

from tests.model.explorer import Explored, Violation, quickly_replaced, search
from understudy.statesync.sessions.request_log import Settled
from understudy.statesync.sessions.session import (
    Method,
    Repeated,
    Session,
    Stored,
    Write,
    WriteContext,
    WriteRefused,
    decide_write,
)

TERMS = WriteContext(epoch=1, now_ms=0, session_bytes=1000, default_ttl=1000)
YOUNG, AGEING, OLD = range(3)
WRITES = {
    "delete": Write(Method.DELETE),
    "create": Write(Method.PUT, b"new", if_none_match="*"),
    "change": Write(Method.PATCH, b"{}", "application/merge-patch+json"),
    "give up": Write(Method.REFUSE),
}
"""What a request may ask for; ``give up`` is an application that refuses it."""


class Rules(NamedTuple):
    """The rules; a mutant is the model with one of them taken away."""

    outcomes_are_kept: bool = True
    refusals_are_kept: bool = True
    outcomes_go_with_the_write: bool = True
    old_requests_are_refused: bool = True
    ageing_outcomes_are_kept: bool = True
    kept_by_time_not_by_number: bool = True
    new_owner_has_the_log: bool = True
    commits_are_fenced: bool = True


class Bounds(NamedTuple):
    """How much may happen. ``verbs`` has one verb per request."""

    verbs: tuple[str, ...]
    copies: int = 3
    others: int = 2
    claims: int = 1
    restarts: int = 0


class Commit(NamedTuple):
    """A write that counts: whether the session is there after it, and the request and outcome that it records."""

    present: bool
    request: int = -1
    outcome: str = ""
    effect: bool = False


class Txn(NamedTuple):
    """A write on its way into the history, fenced by its sender's epoch."""

    member: int
    epoch: int
    commit: Commit


@quickly_replaced
class Member(NamedTuple):
    """A member: how much of the history it has, the epoch that it believes to own, what it must have before it serves.

    ``forgotten`` are requests whose outcomes it has dropped; ``memory`` are outcomes that stand in its memory alone.
    """

    seen: int = 0
    epoch: int = 0
    needs: int = 0
    serves: bool = False
    pending: Txn | None = None
    forgotten: frozenset[int] = frozenset()
    memory: frozenset[tuple[int, str]] = frozenset()


@quickly_replaced
class World(NamedTuple):
    """Everything. ``told`` has what clients heard of each request; ``deleted`` the requests forgotten by etcd."""

    commits: tuple[Commit, ...]
    owner: tuple[int, int]
    members: tuple[Member, ...]
    transit: frozenset[Txn]
    answers: frozenset[tuple[Txn, bool, int]]
    ages: tuple[int, ...]
    delivered: tuple[int, ...]
    told: frozenset[tuple[int, str]]
    deleted: frozenset[int]
    others: int = 0
    claims: int = 0
    restarts: int = 0


Step = tuple[str, Callable[[], World]]


def start(bounds: Bounds) -> World:
    """The first member owns the slot and serves; there is no session."""
    count = len(bounds.verbs)
    first = Member(epoch=1, serves=True)
    none: frozenset[Txn] = frozenset()
    return World(
        (), (0, 1), (first, Member()), none, frozenset(), (YOUNG,) * count, (0,) * count, frozenset(), frozenset()
    )


def steps(world: World, rules: Rules, bounds: Bounds) -> Iterator[Step]:
    """Every possible next step."""
    for txn in world.transit:
        yield f"the history gets {_words(txn, bounds)}", partial(_arrive, world, rules, txn)
    for answer in world.answers:
        yield f"{'ab'[answer[0].member]} hears of {_words(answer[0], bounds)}", partial(_answered, world, rules, answer)
    for request, age in enumerate(world.ages):
        if age < OLD:
            ages = (*world.ages[:request], age + 1, *world.ages[request + 1 :])
            yield f"time passes for request {request}", partial(world._replace, ages=ages)
    for number, member in enumerate(world.members):
        yield from _own_steps(world, rules, bounds, number, member)


def _own_steps(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name = "ab"[number]
    if member.seen < len(world.commits):
        yield f"{name} gets a write", partial(_with, world, number, member._replace(seen=member.seen + 1))
    if world.owner[0] != number and world.claims < bounds.claims:
        yield f"{name} claims the slot", partial(_claim, world, number, member)
    if member.epoch and not member.serves:
        whole = member._replace(serves=True, seen=max(member.seen, member.needs))
        yield f"{name} has the history and begins to serve", partial(_with, world, number, whole)
    if world.restarts < bounds.restarts:
        yield f"{name} is killed and starts again", partial(_restart, world, number)
    for request, age in enumerate(world.ages):
        droppable = age == OLD or (age == AGEING and not rules.ageing_outcomes_are_kept)
        if request not in member.forgotten and droppable:
            yield f"{name} forgets request {request}", partial(_forget, world, number, member, request)
    if member.serves and member.pending is None:
        for request in range(len(bounds.verbs)):
            if world.delivered[request] < bounds.copies:
                yield from _deliveries(world, rules, bounds, number, request)
        if world.others < bounds.others:
            present = _present(world, member)
            yield (
                f"{name} {'removes' if present else 'makes'} the session for somebody else",
                partial(_send, world._replace(others=world.others + 1), number, Commit(not present)),
            )


# -- copies of requests --


def _deliveries(world: World, rules: Rules, bounds: Bounds, number: int, request: int) -> Iterator[Step]:
    age = world.ages[request]
    if age == OLD and rules.old_requests_are_refused:
        return
    counts = list(world.delivered)
    counts[request] += 1
    taken = world._replace(delivered=tuple(counts))
    told = f"{'ab'[number]} gets a copy of request {request} ({bounds.verbs[request]})"
    yield told, partial(_carry_out, taken, rules, bounds, number, request)


def _carry_out(world: World, rules: Rules, bounds: Bounds, number: int, request: int) -> World:
    member = world.members[number]
    verb = bounds.verbs[request]
    present = _present(world, member)
    outcome = decide(verb, present, _known(world, rules, member, request))
    if outcome in ("done before", "refused before"):
        return _tell(world, request, outcome.partition(" ")[0])
    if outcome == "refused":
        if not rules.refusals_are_kept or not rules.outcomes_are_kept:
            return _tell(world, request, "refused")
        return _send(world, number, Commit(present, request, "refused"))
    return _send(world, number, Commit(verb != "delete", request, "done", effect=True))


@cache
def decide(verb: str, present: bool, known: str) -> str:
    """What ``understudy.statesync.sessions.session`` makes of a write whose outcome may be known."""
    current = Session("application/json", b"{}", 1000, 1, 5) if present else None
    write = WRITES[verb]
    settled = None
    if known:
        problem = "" if known == "done" else "no-such-session"
        settled = Settled(write.fingerprint, 200 if known == "done" else 404, 5, problem)
    outcome = decide_write(current, write, TERMS, settled)
    if isinstance(outcome, Stored):
        return "done"
    if isinstance(outcome, Repeated):
        return "done before"
    assert isinstance(outcome, WriteRefused)
    return "refused" if outcome.lasting else "refused before"


def _known(world: World, rules: Rules, member: Member, request: int) -> str:
    """The outcome of a request as a member knows it; '' if it does not."""
    if not rules.outcomes_are_kept or request in member.forgotten:
        return ""
    for known, outcome in member.memory:
        if known == request:
            return outcome
    seen = world.commits[: member.seen]
    if not rules.new_owner_has_the_log:
        seen = seen[member.needs :]
    if not rules.kept_by_time_not_by_number:
        seen = seen[-1:]
    own = not rules.outcomes_go_with_the_write
    return next((commit.outcome for commit in seen if commit.request == request and not own), "")


def _present(world: World, member: Member) -> bool:
    return member.seen > 0 and world.commits[member.seen - 1].present


def _tell(world: World, request: int, outcome: str) -> World:
    after = world._replace(told=world.told | {(request, outcome)})
    check(after)
    return after


def check(world: World) -> None:
    """What must hold in every state."""
    for request in range(len(world.ages)):
        effects = sum(commit.effect for commit in world.commits if commit.request == request)
        if effects > 1:
            raise Violation(f"one effect: request {request} had {effects}")
        if effects and (request, "refused") in world.told:
            raise Violation(f"a refusal is final: request {request} was refused, and had its effect")
        if (request, "done") in world.told and not effects:
            raise Violation(f"done is done: request {request} had no effect")


# -- the history, ownership, processes --


def _send(world: World, number: int, commit: Commit) -> World:
    member = world.members[number]
    txn = Txn(number, member.epoch, commit)
    return _with(world, number, member._replace(pending=txn))._replace(transit=world.transit | {txn})


def _arrive(world: World, rules: Rules, txn: Txn) -> World:
    arrived = world._replace(transit=world.transit - {txn})
    won = txn.epoch == world.owner[1] or not rules.commits_are_fenced
    commits = (*world.commits, txn.commit) if won else world.commits
    answers = world.answers | ({(txn, won, len(commits))} if world.members[txn.member].pending == txn else set())
    after = arrived._replace(commits=commits, answers=answers)
    check(after)
    return after


def _answered(world: World, rules: Rules, answer: tuple[Txn, bool, int]) -> World:
    txn, won, count = answer
    member = world.members[txn.member]._replace(pending=None)
    world = world._replace(answers=world.answers - {answer})
    if not won:
        return _with(world, txn.member, member._replace(epoch=0, serves=False))
    member = member._replace(seen=max(member.seen, count))
    if txn.commit.outcome and not rules.outcomes_go_with_the_write:
        member = member._replace(memory=member.memory | {(txn.commit.request, txn.commit.outcome)})
    after = _with(world, txn.member, member)
    return _tell(after, txn.commit.request, txn.commit.outcome) if txn.commit.outcome else after


def _claim(world: World, number: int, member: Member) -> World:
    epoch = world.owner[1] + 1
    claimed = member._replace(epoch=epoch, needs=len(world.commits), serves=False, pending=None)
    answers = frozenset(answer for answer in world.answers if answer[0].member != number)
    return _with(world, number, claimed)._replace(owner=(number, epoch), claims=world.claims + 1, answers=answers)


def _restart(world: World, number: int) -> World:
    """A new process reads everything from etcd, where what was deleted is missing; it owns nothing yet."""
    fresh = Member(seen=len(world.commits), forgotten=world.deleted)
    answers = frozenset(answer for answer in world.answers if answer[0].member != number)
    return _with(world, number, fresh)._replace(restarts=world.restarts + 1, answers=answers)


def _forget(world: World, number: int, member: Member, request: int) -> World:
    """A member drops what it knows of a request, and deletes it from etcd."""
    after = _with(world, number, member._replace(forgotten=member.forgotten | {request}))
    return after._replace(deleted=world.deleted | {request})


def _with(world: World, number: int, member: Member) -> World:
    return world._replace(members=(*world.members[:number], member, *world.members[number + 1 :]))


def _words(txn: Txn, bounds: Bounds) -> str:
    what = txn.commit.outcome or "another client's write"
    verb = f" ({bounds.verbs[txn.commit.request]})" if txn.commit.outcome else ""
    return f"{'ab'[txn.member]}'s commit: {what}{verb}"


SMALL = {
    "a delete, two takeovers": Bounds(("delete",), copies=2, others=1, claims=2),
    "a creation": Bounds(("create",), copies=2, others=2, claims=1),
    "a change and a restart": Bounds(("change",), copies=2, others=1, claims=1, restarts=1),
    "an application that refuses": Bounds(("give up",), copies=2, others=2, claims=1),
    "two requests": Bounds(("delete", "create"), copies=2, others=0, claims=1),
}

LARGE = {
    "three copies of a delete": Bounds(("delete",), copies=3, others=3, claims=2),
    "three copies of a creation": Bounds(("create",), copies=3, others=3, claims=2),
    "two requests among others": Bounds(("delete", "create"), copies=2, others=1, claims=1),
}

_DELETE, _CREATE = (Bounds((verb,), copies=2, others=2, claims=1) for verb in ("delete", "create"))
MUTANTS = {
    "outcomes_are_kept": (_DELETE, "a refusal is final"),
    "refusals_are_kept": (_DELETE, "a refusal is final"),
    "outcomes_go_with_the_write": (_CREATE, "a refusal is final"),
    "old_requests_are_refused": (_DELETE, "a refusal is final"),
    "ageing_outcomes_are_kept": (_DELETE, "a refusal is final"),
    "kept_by_time_not_by_number": (_CREATE, "one effect"),
    "new_owner_has_the_log": (_CREATE, "a refusal is final"),
    "commits_are_fenced": (_CREATE, "one effect"),
}


def explored(rules: Rules, bounds: Bounds) -> Explored:
    """All states reachable under ``rules`` within ``bounds``."""
    return search(start(bounds), partial(steps, rules=rules, bounds=bounds))
