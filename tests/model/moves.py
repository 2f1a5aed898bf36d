"""What can happen next in the modelled pool: every step that a member, etcd or the network may take.

A pause needs no step of its own: a member that is not chosen for a while is paused, and acts later on what it knew.
Nor does the loss of a message: one that is never chosen never arrives. Time is abstract: the one thing that the passing
of time proves is that looks sent before a revision have outlived their read deadline.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

from tests.model import answers, protocol
from tests.model.answers import learn, reopened, with_member
from tests.model.store import carried_out, check_opening, repeated
from tests.model.world import (
    Activate,
    Bounds,
    Given,
    Holding,
    Look,
    Member,
    Rules,
    Settled,
    Txn,
    Violation,
    World,
    Write,
    fresh_batch,
    name_of,
    newest_of_all,
    record_at,
    value_at,
)

Step = tuple[str, Callable[[], World]]


def moves(world: World, rules: Rules, bounds: Bounds) -> Iterator[Step]:
    """Every possible next step: what it is, and how to take it (which raises :class:`Violation` if it breaks one)."""
    for message in world.transit:
        if isinstance(message, Txn):
            again = " once more" if message.copy else ""
            yield f"etcd gets {_told(message)}{again}", partial(_arrive, world, rules, message)
        elif isinstance(message, Activate):
            yield from _take(world, rules, message)
        elif isinstance(message, Given):
            yield from _take_given(world, message)
        else:
            told = f"{name_of(message.member)} hears who has claimed what it gave away"
            yield told, partial(answers.settled, world, rules, message)
    for answer in world.answers:
        verdict = f"done at {answer.revision}" if answer.won else "refused"
        told = f"{name_of(answer.txn.member)} hears of {_told(answer.txn)}: {verdict}"
        yield told, partial(answers.received, world, rules, answer)
    for number, member in enumerate(world.members):
        yield from _knowing(world, rules, bounds, number, member)
        yield from _owning(world, rules, bounds, number, member)
        yield from _failing(world, rules, bounds, number, member)


def _told(txn: Txn) -> str:
    if txn.kind == "write":
        what = " ".join(write.request for write in txn.writes)
        return f"{name_of(txn.member)}'s write of {what} fenced at {txn.fence}"
    assert txn.record is not None
    return f"{name_of(txn.member)}'s {txn.kind} (epoch {txn.record.epoch}, replaces {txn.fence})"


def _arrive(world: World, rules: Rules, txn: Txn) -> World:
    return carried_out(world._replace(transit=world.transit - {txn}), rules, txn)


def _send(world: World, number: int, member: Member, txn: Txn) -> World:
    changed = member._replace(batch=txn) if txn.kind == "write" else member._replace(txn=txn)
    return with_member(world, number, changed)._replace(transit=world.transit | {txn})


# -- learning --


def _knowing(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name = name_of(number)
    if member.watched < world.revision:
        yield f"{name}'s watch brings revision {member.watched + 1}", partial(_watch, world, number, member)
    if member.look is not None:
        yield f"{name}'s look comes back", partial(_look_back, world, rules, number, member)
    elif world.spent.looks < bounds.looks and member.reads_since < world.revision:
        look = Look(world.revision, world.owners[-1].revision)
        spent = world.spent._replace(looks=world.spent.looks + 1)
        sent = with_member(world, number, member._replace(look=look))._replace(spent=spent)
        yield f"{name} looks at the owner record", lambda: sent


def _watch(world: World, number: int, member: Member) -> World:
    due = member.watched + 1
    memory = list(member.memory)
    for put in world.sessions:
        if put.revision == due:
            memory[put.session] = max(memory[put.session], due)
    view = max(member.view, due) if any(put.revision == due for put in world.owners) else member.view
    return with_member(world, number, learn(world, number, member._replace(watched=due, memory=tuple(memory)), view))


def _look_back(world: World, rules: Rules, number: int, member: Member) -> World:
    look = member.look
    assert look is not None
    since = look.sent if rules.deadline_counts_from_sending else world.revision
    looked = member._replace(look=None, reads_since=max(member.reads_since, since))
    return with_member(world, number, learn(world, number, looked, look.found))


# -- serving --


def _owning(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name = name_of(number)
    seen = record_at(world, member.view)
    ours = protocol.mine(name, member.boot, seen)
    if not ours and member.txn is None and world.spent.claims < bounds.claims:
        yield f"{name} claims (its view is of {member.view})", partial(_claim, world, rules, number, member)
    holding = member.holding
    if ours and (holding is None or holding.fence < member.view) and _may_adopt(member):
        if member.given != member.view or not rules.given_is_taken_up_anew:
            yield f"{name} adopts the slot of revision {member.view}", partial(_adopt, world, rules, number, member)
        elif member.txn is None:
            record = protocol.taken_up(seen, world.spent.gifts)
            txn = Txn("take up", number, member.boot, member.view, record)
            yield f"{name} takes up what it gave away", partial(_send, world, number, member, txn)
    if holding is None:
        return
    if holding.gate == "lease":
        passed = world._replace(passed=max(world.passed, holding.fence))
        waited = member._replace(holding=holding._replace(gate="catch up"))
        yield f"{name} has waited for read deadlines to pass", lambda: with_member(passed, number, waited)
    if holding.gate == "catch up":
        if member.watched >= holding.needed or not rules.claim_waits_for_watch:
            yield f"{name} begins to serve", partial(_open, world, number, member)
        read = member._replace(memory=newest_of_all(world))
        yield f"{name} reads the slot from etcd and begins to serve", partial(_open, world, number, read)
    if holding.gate == "open":
        yield from _writes(world, rules, bounds, number, member, holding)
        yield from _leave(world, rules, bounds, number, member, holding)
        yield from _give(world, rules, bounds, number, member, holding)
    if holding.gate in ("open", "readable"):
        yield from _reads(world, rules, number, member)
    if member.txn is None:
        yield from _undo(world, number, member, holding)


def _claim(world: World, rules: Rules, number: int, member: Member) -> World:
    spent = world.spent._replace(claims=world.spent.claims + 1)
    seen = record_at(world, member.view)
    fence, record = protocol.claimed(name_of(number), member.boot, seen, member.view, spent.claims)
    if not rules.claim_raises_epoch:
        record = record._replace(epoch=seen.epoch)
    return _send(world._replace(spent=spent), number, member, Txn("claim", number, member.boot, fence, record))


def _may_adopt(member: Member) -> bool:
    return member.txn is None or member.txn.kind == "finish"


def _adopt(world: World, rules: Rules, number: int, member: Member) -> World:
    record = record_at(world, member.view)
    gate = "lease" if rules.lease and rules.adopting_outwaits_readers else "catch up"
    holding = Holding(member.view, record, "closed" if record.handover else gate)
    if rules.adopting_reads_etcd:
        member = member._replace(memory=newest_of_all(world))
    return with_member(world, number, member._replace(holding=holding))


def _open(world: World, number: int, member: Member) -> World:
    assert member.holding is not None
    check_opening(with_member(world, number, member), number, member.holding.fence)
    return with_member(world, number, reopened(member))


def _writes(
    world: World, rules: Rules, bounds: Bounds, number: int, member: Member, holding: Holding
) -> Iterator[Step]:
    if member.batch is not None:
        return
    sessions = len(world.shown)
    wanted: list[list[str]] = [[""] for _ in range(sessions)]
    for request in range(bounds.writes):
        name = f"w{request + 1}"
        if name not in world.acknowledged:
            wanted[request % sessions].append(name)
    for chosen in product(*wanted):
        requests = [(session, request) for session, request in enumerate(chosen) if request]
        if requests:
            told = f"{name_of(number)} is asked to write {' '.join(request for _, request in requests)}"
            yield told, partial(_write, world, rules, number, member, holding, requests)


def _write(
    world: World, rules: Rules, number: int, member: Member, holding: Holding, requests: list[tuple[int, str]]
) -> World:
    keep = rules.repeats_are_recognised
    stale = rules.lease and rules.repeats_keep_the_deadline and member.reads_since < world.passed
    writes = []
    for session, request in requests:
        known = value_at(world, session, member.memory[session])
        if protocol.repeats(known, request, keep_answers=keep):
            if stale and world.owners[-1].revision != holding.fence:
                return with_member(world, number, learn(world, number, member, world.owners[-1].revision))
            world = repeated(world, session, request)
        else:
            writes.append(Write(session, request, (*known, request)))
    if not writes:
        return world
    batch = fresh_batch(world)
    txn = Txn("write", number, member.boot, holding.fence, None, member.marker, batch, tuple(writes))
    return _send(world, number, member, txn)


def _reads(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    """Answers from memory, if the read deadline holds: a read, or a write refused for what the session holds."""
    if not rules.lease:
        return
    if member.reads_since >= world.passed:
        yield f"{name_of(number)} answers a read from memory", partial(_read, world, member)
    elif not rules.refusals_keep_the_deadline:
        yield f"{name_of(number)} refuses a conditional write from memory", partial(_read, world, member)


def _read(world: World, member: Member) -> World:
    for session, (known, shown) in enumerate(zip(member.memory, world.shown, strict=True)):
        if known < shown:
            missing = value_at(world, session, shown)
            raise Violation(f"no stale read: {missing} of revision {shown} was shown before")
    return world._replace(shown=member.memory)


# -- handing over --


def _leave(world: World, rules: Rules, bounds: Bounds, number: int, member: Member, holding: Holding) -> Iterator[Step]:
    drained = member.batch is None or not rules.handover_fences
    if member.txn is not None or not drained or world.spent.handovers >= bounds.handovers:
        return
    for target in range(len(world.members)):
        if target != number:
            step = partial(_start_handover, world, rules, number, member, holding, target)
            yield f"{name_of(number)} hands over to {name_of(target)}", step


def _start_handover(world: World, rules: Rules, number: int, member: Member, holding: Holding, target: int) -> World:
    spent = world.spent._replace(handovers=world.spent.handovers + 1)
    closed = member._replace(holding=holding._replace(gate="readable" if rules.handover_fences else "closed"))
    started = world._replace(spent=spent)
    if not rules.handover_fences:
        told = started._replace(transit=started.transit | {Activate(target, holding.fence)})
        return with_member(told, number, closed)
    record = protocol.leaving(holding.record, name_of(target), spent.handovers)
    return _send(started, number, closed, Txn("leave", number, member.boot, holding.fence, record))


def _take(world: World, rules: Rules, word: Activate) -> Iterator[Step]:
    member = world.members[word.member]
    if member.txn is not None:
        return
    name = name_of(word.member)
    told = world._replace(transit=world.transit - {word})
    if member.watched >= word.revision:
        yield f"{name} is told to take over", partial(_finish, told, rules, word, member)
    else:
        view = max(member.view, word.revision)
        blind = member._replace(view=view)
        copied = member._replace(memory=newest_of_all(world))
        read = learn(world, word.member, copied, world.owners[-1].revision)
        ready = read if rules.target_waits_for_watch else blind
        yield f"{name} is told to take over and reads the slot", partial(_finish, told, rules, word, ready)


def _finish(world: World, rules: Rules, word: Activate, member: Member) -> World:
    number = word.member
    seen = record_at(world, member.view)
    if not rules.handover_fences:
        seen = protocol.leaving(seen, name_of(number), 1)
    if member.view != word.revision or seen.to != name_of(number):
        return with_member(world, number, member)
    record = protocol.arrived(seen, member.boot, world.spent.handovers)
    return _send(world, number, member, Txn("finish", number, member.boot, word.revision, record))


def _undo(world: World, number: int, member: Member, holding: Holding) -> Iterator[Step]:
    """The target is silent; or nobody carries a handover out any more that the record still speaks of."""
    seen = record_at(world, member.view)
    if not holding.record.handover:
        if not (seen.handover and protocol.mine(name_of(number), member.boot, seen) and member.view >= holding.fence):
            return
        holding = Holding(member.view, seen, "closed")
    back = protocol.taken_back(holding.record, world.spent.handovers)
    txn = Txn("undo", number, member.boot, holding.fence, back)
    yield (
        f"{name_of(number)} takes the slot back",
        partial(_send, world, number, member._replace(holding=holding), txn),
    )


# -- giving away --


def _give(world: World, rules: Rules, bounds: Bounds, number: int, member: Member, holding: Holding) -> Iterator[Step]:
    if member.txn is not None or world.spent.gifts >= bounds.gifts:
        return
    spent = world.spent._replace(gifts=world.spent.gifts + 1)
    kept = None if rules.giving_ends_reads else holding._replace(gate="readable")
    without = with_member(world, number, member._replace(holding=kept, given=holding.fence))
    for target in range(len(world.members)):
        if target != number:
            given = without._replace(spent=spent, transit=world.transit | {Given(target, holding.fence)})
            yield f"{name_of(number)} gives the slot away to {name_of(target)}", partial(World._replace, given)


def _take_given(world: World, word: Given) -> Iterator[Step]:
    number = word.member
    member = world.members[number]
    if member.txn is not None or member.view != word.revision:
        return
    seen, stamp = record_at(world, member.view), 10 + world.spent.gifts
    fence, record = protocol.claimed(name_of(number), member.boot, seen, member.view, stamp)
    told = world._replace(transit=world.transit - {word})
    txn = Txn("take", number, member.boot, fence, record)
    yield f"{name_of(number)} takes what it was given", partial(_send, told, number, member, txn)


# -- failing --


def _failing(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name, spent = name_of(number), world.spent
    if spent.restarts < bounds.restarts:
        yield f"{name} is killed and starts again", partial(_restart, world, number, member)
    for txn in (member.txn, member.batch):
        if txn is not None and not txn.copy and spent.resends < bounds.resends:
            yield f"{name} hears nothing and sends again: {_told(txn)}", partial(_resend, world, number, member, txn)
    if member.txn is not None and spent.lost_answers < bounds.lost_answers:
        yield f"{name} gives up waiting for {_told(member.txn)}", partial(_give_up, world, number, member)


def _restart(world: World, number: int, member: Member) -> World:
    now = world.revision
    fresh = Member(member.boot + 1, world.owners[-1].revision, now, newest_of_all(world), now, world.markers[number][0])
    spent = world.spent._replace(restarts=world.spent.restarts + 1)
    left = frozenset(answer for answer in world.answers if answer.txn.member != number)
    heard = frozenset(m for m in world.transit if not (isinstance(m, Settled) and m.member == number))
    return with_member(world, number, fresh)._replace(spent=spent, answers=left, transit=heard)


def _resend(world: World, number: int, member: Member, txn: Txn) -> World:
    spent = world.spent._replace(resends=world.spent.resends + 1)
    left = frozenset(answer for answer in world.answers if answer.txn != txn)
    return _send(world._replace(spent=spent, answers=left), number, member, txn._replace(copy=1))


def _give_up(world: World, number: int, member: Member) -> World:
    txn = member.txn
    assert txn is not None
    spent = world.spent._replace(lost_answers=world.spent.lost_answers + 1)
    left = frozenset(answer for answer in world.answers if answer.txn != txn)
    alone = member._replace(txn=None)
    if txn.kind == "leave":
        alone = reopened(alone)
    return with_member(world, number, alone)._replace(spent=spent, answers=left)
