"""What can happen next to a slot whose members replicate to each other: every step of a member, etcd or the network.

A pause needs no step of its own: a member that is not chosen for a while is paused. Nor does the loss of a message, or
of etcd's answer: a member learns what became of its change by its watch, and a watch that is not chosen lags.
"""

from collections.abc import Callable, Iterator
from functools import partial

from tests.model.replication.world import (
    Bounds,
    Change,
    Confirmation,
    Frame,
    Member,
    Process,
    Promise,
    Record,
    Refusal,
    Rules,
    Violation,
    World,
    checked,
    runs,
    with_member,
)
from tests.model.world import name_of

Step = tuple[str, Callable[[], World]]


def moves(world: World, rules: Rules, bounds: Bounds) -> Iterator[Step]:
    """Every possible next step: what it is, and how to take it (which raises :class:`Violation` if it breaks one)."""
    for told, step in _moves(world, rules, bounds):
        yield told, lambda step=step: checked(step())  # type: ignore[misc]


def _moves(world: World, rules: Rules, bounds: Bounds) -> Iterator[Step]:
    for message in world.transit:
        arrived = world._replace(transit=world.transit - {message})
        match message:
            case Change():
                told = f"etcd gets {name_of(message.sender[0])}'s {message.kind} (replaces {message.compares})"
                yield told, partial(_carry_out, arrived, message)
            case Frame():
                told = f"{name_of(message.to[0])} gets {message.log} of epoch {message.epoch}"
                yield told, partial(_frame, arrived, rules, message)
            case Confirmation():
                told = f"{name_of(message.to[0])} hears that {name_of(message.sender[0])} has {message.length}"
                yield told, partial(_confirmed, arrived, message)
            case Refusal():
                yield f"{name_of(message.to[0])} is refused", partial(_refused, arrived, message)
            case Promise():
                told = f"{name_of(message.to[0])} hears the promise of {name_of(message.sender[0])}"
                yield told, partial(_heard_promise, arrived, message)
    for question in range(1, len(world.askers) + 1):
        if question not in world.expired:
            expired = world._replace(expired=world.expired | {question})
            yield f"the time of question {question} is over", partial(World._replace, expired)
    for number, member in enumerate(world.members):
        if member.alive:
            yield from _living(world, rules, bounds, number, member)
        elif world.spent.restarts < bounds.restarts:
            yield f"{name_of(number)} starts again", partial(_restart, world, number, member)


def _living(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name = name_of(number)
    if member.view != world.record:
        yield f"{name} sees the record of revision {world.record.revision}", partial(_watch, world, number, member)
    change = member.change
    if change is not None and change not in world.transit and world.record.revision == change.compares:
        yield f"{name} learns that its change failed", partial(_open_change, world, number, member, None)
    if world.spent.deaths < bounds.deaths:
        yield f"{name} dies", partial(_die, world, number, member)
    if member.serving:
        yield from _serving(world, rules, bounds, number, member)
    else:
        yield from _claiming(world, rules, bounds, number, member)
        yield from _begin(world, rules, number, member)
    yield from _promise(world, number, member)
    visible = member.shown if rules.copies_show_what_is_acknowledged else len(member.log)
    if bounds.stale_reads and not frozenset(member.log[:visible]) <= world.seen:
        shown = world._replace(seen=world.seen | frozenset(member.log[:visible]))
        yield f"{name} shows a stale reader {member.log[:visible]}", partial(World._replace, shown)


def _spend(world: World, kind: str) -> World:
    return world._replace(spent=world.spent._replace(**{kind: getattr(world.spent, kind) + 1}))


# -- etcd and the watch --


def _carry_out(world: World, change: Change) -> World:
    if world.record.revision != change.compares:
        return world
    if change.kind == "loss":
        world = _lost(world)
    return world._replace(record=change.record._replace(revision=world.record.revision + 1))


def _lost(world: World) -> World:
    """A loss: what is not in the checkpoint has died with everybody who had it, and nothing ``sync`` is missing."""
    left = frozenset(world.checkpoint)
    missing = world.acknowledged - left
    if missing & world.synced:
        raise Violation(f"no sync write is lost: {sorted(missing & world.synced)}")
    for write, holder in sorted(world.holders):
        if write in missing and runs(world, holder):
            raise Violation(f"nothing is given up while somebody has it: {name_of(holder[0])} has w{write}")
    return world._replace(acknowledged=world.acknowledged & left, seen=world.seen & left)


def _watch(world: World, number: int, member: Member) -> World:
    record, change = world.record, member.change
    known = max(member.known, record.epoch)
    seen = member._replace(view=record, known=known)
    if change is not None and record.revision > change.compares:
        seen = seen._replace(change=None)
    if seen.serving and record.epoch != seen.serving:
        seen = _stopped(seen)
    return with_member(world, number, seen)


def _stopped(member: Member) -> Member:
    return member._replace(serving=0, heard=(), asked=0, promises=frozenset(), saved=0)


def _open_change(world: World, number: int, member: Member, change: Change | None) -> World:
    changed = with_member(world, number, member._replace(change=change))
    return changed if change is None else changed._replace(transit=changed.transit | {change})


# -- the stream --


def _frame(world: World, rules: Rules, frame: Frame) -> World:
    number = frame.to[0]
    if not runs(world, frame.to):
        return world
    member = world.members[number]
    if frame.epoch < member.known and (rules.old_epochs_are_refused or member.serving):
        return world._replace(transit=world.transit | {Refusal(frame.sender, frame.epoch)})
    newer = frame.epoch > member.follows if rules.logs_follow_epochs else False
    log = frame.log if newer or len(frame.log) >= len(member.log) else member.log
    following = _stopped(member) if member.serving else member
    following = following._replace(
        log=log,
        follows=frame.epoch,
        known=max(member.known, frame.epoch),
        shown=min(max(frame.shown, 0 if newer else member.shown), len(log)),
    )
    word = Confirmation(frame.to, frame.sender, frame.epoch, len(frame.log))
    heard = dict(world.members[frame.sender[0]].heard).get(frame.to, -1)
    said = {m for m in world.transit if isinstance(m, Confirmation) and m[:3] == word[:3]}
    known = any(m.length > word.length for m in said) or (runs(world, frame.sender) and heard >= word.length)
    transit = world.transit if known else world.transit - said | {word}
    return with_member(world, number, following)._replace(transit=transit)


def _confirmed(world: World, word: Confirmation) -> World:
    member = world.members[word.to[0]]
    if not runs(world, word.to) or member.serving != word.epoch:
        return world
    heard = dict(member.heard)
    heard[word.sender] = max(heard.get(word.sender, 0), word.length)
    return with_member(world, word.to[0], member._replace(heard=tuple(sorted(heard.items()))))


def _refused(world: World, word: Refusal) -> World:
    member = world.members[word.to[0]]
    if not runs(world, word.to) or member.serving != word.epoch:
        return world
    return with_member(world, word.to[0], _stopped(member))


# -- serving --


def _serving(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name, spent, me = name_of(number), world.spent, (number, member.boot)
    if spent.writes < bounds.writes:
        write = spent.writes + 1
        taken = with_member(world, number, member._replace(log=(*member.log, write)))
        yield f"{name} takes w{write}", partial(_spend, taken, "writes")
    for other, peer in enumerate(world.members):
        if other == number or not peer.alive:
            continue
        frame = Frame(me, (other, peer.boot), member.serving, member.log, member.shown)
        after = _frame(world, rules, frame)
        if after != world:
            yield (
                f"{name_of(other)} gets {member.log} of epoch {member.serving} from {name}",
                partial(World._replace, after),
            )
        if spent.delayed < bounds.delayed and frame not in world.transit:
            delayed = world._replace(transit=world.transit | {frame})
            yield f"a frame from {name} to {name_of(other)} is delayed", partial(_spend, delayed, "delayed")
    yield from _acknowledging(world, rules, bounds, number, member)
    fenced = world.record.revision == member.view.revision and member.change is None
    if fenced and spent.saves < bounds.saves and member.saved < len(member.log):
        saved = with_member(world, number, member._replace(saved=len(member.log)))
        yield f"{name} saves {member.log}", partial(_spend, saved._replace(checkpoint=member.log), "saves")
    if member.view.epoch == member.serving and member.change is None:
        yield from _changing(world, rules, bounds, number, member)
    yield from _reading(world, rules, bounds, number, member)


def needed(member: Member, rules: Rules) -> frozenset[Process]:
    """The processes that must have a write before it counts: the sync set, and that of an open change."""
    change = member.change
    return member.view.sync | (change.record.sync if change is not None and rules.open_change_counts else frozenset())


def _confirmed_by_all(member: Member, me: Process, rules: Rules) -> int:
    """How much of the log all have that must have it."""
    heard = dict(member.heard)
    others = [heard.get(other, 0) for other in needed(member, rules) - {me}]
    if not rules.all_of_the_set_confirm and others:
        return min(max(heard.values(), default=0), len(member.log))
    return min([len(member.log), *others])


def _acknowledging(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me, name, change = (number, member.boot), name_of(number), member.change
    has = _confirmed_by_all(member, me, rules)
    forgets = change is not None and not change.record.memory and rules.open_forgetting_stops
    announced = (member.view.memory or not rules.memory_is_announced) and not forgets
    enough = len(needed(member, rules)) > 1 or not rules.two_have_it
    if announced and enough and member.view.epoch == member.serving:
        yield from _acknowledge(world, rules, number, member, has, "replicas", frozenset())
    saved = min(member.saved, has) if rules.saved_needs_the_set_too else member.saved
    yield from _acknowledge(world, rules, number, member, saved, "sync", frozenset(member.log[:saved]))
    if bounds.stale_reads and member.shown < has and frozenset(member.log[:has]) <= world.acknowledged:
        yield f"{name} may show {has}", partial(with_member, world, number, member._replace(shown=has))


def _acknowledge(
    world: World, rules: Rules, number: int, member: Member, length: int, kind: str, synced: frozenset[int]
) -> Iterator[Step]:
    writes = frozenset(member.log[:length])
    if writes <= world.acknowledged and synced <= world.synced:
        return
    me = (number, member.boot)
    holders = {process for process, has in member.heard if has >= length} & needed(member, rules) | {me}
    new = {(write, process) for write in writes - world.acknowledged for process in holders}
    after = world._replace(
        acknowledged=world.acknowledged | writes, synced=world.synced | synced, holders=world.holders | new
    )
    told = f"{name_of(number)} acknowledges {sorted(writes)} as {kind}"
    yield told, partial(_acknowledged, after, told, alone=kind == "replicas" and len(holders) == 1)


def _acknowledged(after: World, told: str, *, alone: bool) -> World:
    if alone:
        raise Violation(f"two have what is acknowledged: {told}, and nobody else has it")
    return after


# -- changes of the record by its active --


def _changing(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me, name, view, spent = (number, member.boot), name_of(number), member.view, world.spent
    all_saved = member.saved == len(member.log)
    others = sorted(view.sync - {me})
    if spent.shrinks < bounds.shrinks:
        for other in others:
            sync = view.sync - {other}
            alone = len(sync) == 1
            if alone and not all_saved and rules.shrink_saves_first:
                continue
            record = view._replace(sync=sync, memory=view.memory and not alone)
            told = f"{name} takes {name_of(other[0])} out of the set"
            yield told, partial(_send, world, number, member, "shrink", record, "shrinks")
    if spent.grows < bounds.grows:
        everything = 0
        for place, write in enumerate(member.log, 1):
            everything = place if write in world.acknowledged else everything
        for learner, has in member.heard:
            if learner not in view.sync and (has >= everything or not rules.learner_has_everything):
                record = view._replace(sync=view.sync | {learner})
                told = f"{name} adds {name_of(learner[0])} to the set"
                yield told, partial(_send, world, number, member, "growth", record, "grows")
    if spent.forgets < bounds.forgets and view.memory and (all_saved or not rules.forgetting_saves_first):
        record = view._replace(memory=False)
        yield f"{name} says that all is saved", partial(_send, world, number, member, "forgetting", record, "forgets")
    if spent.forgets < bounds.forgets and not view.memory and len(view.sync) > 1:
        record = view._replace(memory=True)
        told = f"{name} announces writes in memory"
        yield told, partial(_send, world, number, member, "announcement", record, "forgets")
    if spent.handovers < bounds.handovers:
        for other in others:
            record = view._replace(epoch=view.epoch + 1, active=other, former=view.former | {me}, saved_only=False)
            told = f"{name} hands over to {name_of(other[0])}"
            yield told, partial(_send, world, number, member, "handover", record, "handovers")


def _send(
    world: World,
    number: int,
    member: Member,
    kind: str,
    record: Record,
    spent: str,
) -> World:
    change = Change(kind, (number, member.boot), member.view.revision, record._replace(revision=0))
    return _spend(_open_change(world, number, member, change), spent)


# -- taking the slot --


def _claiming(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me, name, view = (number, member.boot), name_of(number), member.view
    if world.spent.claims >= bounds.claims or member.change is not None or view.active == me:
        return
    in_set = me in view.sync
    if not rules.boots_are_identities:
        in_set = any(process[0] == number for process in view.sync)
    next_one = view._replace(epoch=view.epoch + 1, active=me, former=view.former | {view.active}, saved_only=False)
    if not view.memory:
        record = next_one._replace(sync=frozenset({me}), saved_only=True)
        yield f"{name} claims from etcd", partial(_send, world, number, member, "claim", record, "claims")
        return
    if in_set or not rules.only_the_set_claims:
        rest = view.sync - {view.active} | {me} if rules.claim_keeps_the_others else frozenset({me})
        record = next_one._replace(sync=rest)
        yield f"{name} claims epoch {record.epoch}", partial(_send, world, number, member, "claim", record, "claims")
    gone = not any(runs(world, process) for process in view.sync) or not rules.loss_proves_the_set_dead
    former = not any(runs(world, process) for process in view.former) or not rules.loss_proves_former_actives_dead
    if gone and former:
        record = next_one._replace(sync=frozenset({me}), memory=False, saved_only=True)
        yield f"{name} claims after a loss", partial(_send, world, number, member, "loss", record, "claims")


def _begin(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    """Who sees that it is the active begins to serve."""
    view = member.view
    if view.active != (number, member.boot) or view.epoch < member.known or view.epoch <= member.follows:
        return
    if rules.promises_outlast_the_deadline and any(
        question not in world.expired and runs(world, world.askers[question - 1]) for question in member.promised
    ):
        return
    yield f"{name_of(number)} begins to serve in epoch {view.epoch}", partial(_serve, world, number, member)


def _serve(world: World, number: int, member: Member) -> World:
    view = member.view
    log = world.checkpoint if view.saved_only else member.log
    serving = member._replace(
        log=log,
        follows=view.epoch,
        known=view.epoch,
        serving=view.epoch,
        heard=(),
        saved=len(log) if view.saved_only else 0,
        shown=min(member.shown, len(log)),
    )
    return with_member(world, number, serving)


# -- reads without etcd --


def _reading(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name, me = name_of(number), (number, member.boot)
    if member.asked == 0 and world.spent.questions < bounds.questions:
        asking = member._replace(asked=len(world.askers) + 1, promises=frozenset())
        asked = with_member(world, number, asking)._replace(askers=(*world.askers, me))
        yield f"{name} asks how long it may read", partial(_spend, asked, "questions")
    if not member.asked or member.asked in world.expired:
        return
    promised = needed(member, rules) - {me} <= member.promises
    if not rules.every_member_promises:
        promised = bool(member.promises)
    change = member.change
    memory = member.view.memory and (change is None or change.record.memory)
    if promised and (memory or not rules.promises_need_memory) and member.view.epoch == member.serving:
        yield f"{name} answers a read", partial(_read, world, number, member)


def _read(world: World, number: int, member: Member) -> World:
    missing = world.acknowledged - frozenset(member.log)
    if missing:
        raise Violation(f"no stale read: {name_of(number)} does not know {sorted(missing)}")
    return world


def _promise(world: World, number: int, member: Member) -> Iterator[Step]:
    for question, asker in enumerate(world.askers, 1):
        asking = world.members[asker[0]]
        if (
            asker[0] == number
            or question in member.promised
            or not runs(world, asker)
            or asking.asked != question
            or asking.serving < member.known
            or member.serving
        ):
            continue
        promising = with_member(world, number, member._replace(promised=member.promised | {question}))
        word = Promise((number, member.boot), asker, question)
        told = f"{name_of(number)} promises {name_of(asker[0])} not to serve"
        yield told, partial(World._replace, promising, transit=promising.transit | {word})


def _heard_promise(world: World, word: Promise) -> World:
    member = world.members[word.to[0]]
    if not runs(world, word.to) or member.asked != word.question:
        return world
    return with_member(world, word.to[0], member._replace(promises=member.promises | {word.sender}))


# -- failing --


def _die(world: World, number: int, member: Member) -> World:
    process = (number, member.boot)
    left = frozenset(m for m in world.transit if isinstance(m, Change) or m.to != process)
    gone = Member(False, member.boot, member.view, 0)
    return _spend(with_member(world, number, gone)._replace(transit=left), "deaths")


def _restart(world: World, number: int, member: Member) -> World:
    boot = member.boot + 1
    fresh = Member(True, boot, world.record, world.record.epoch)
    return _spend(with_member(world, number, fresh), "restarts")
