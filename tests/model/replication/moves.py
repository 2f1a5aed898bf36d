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
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Progress, Source, SyncSet

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
        world = _lost(world, change)
    newer = tuple(write for write in change.saves if write not in world.checkpoint)
    record = change.record._replace(revision=world.record.revision + 1)
    return world._replace(record=record, checkpoint=(*world.checkpoint, *newer))


def _lost(world: World, change: Change) -> World:
    """A loss: what its claimer and etcd lack has died with everybody who had it, and nothing ``sync`` is missing."""
    left = frozenset(world.checkpoint)
    if change.record.source is Source.BOTH and runs(world, change.sender):
        left |= frozenset(world.members[change.sender[0]].log)
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
    elif seen.serving and len(record.sync.members) == 1:
        seen = seen._replace(saved=max(seen.saved, seen.began))
    return with_member(world, number, seen)


def _stopped(member: Member) -> Member:
    return member._replace(serving=0, heard=(), asked=0, promises=frozenset(), saved=0, began=0)


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
    has = _held(world, member, me, rules) if rules.saved_is_what_all_have else len(member.log)
    if fenced and spent.saves < bounds.saves and member.saved < has:
        saved = with_member(world, number, member._replace(saved=has))
        newer = tuple(write for write in member.log[:has] if write not in world.checkpoint)
        after = saved._replace(checkpoint=(*world.checkpoint, *newer))
        yield f"{name} saves {member.log[:has]}", partial(_spend, after, "saves")
    if member.view.epoch == member.serving and member.change is None:
        yield from _changing(world, rules, bounds, number, member)
    yield from _reading(world, rules, bounds, number, member)


def needed(member: Member, rules: Rules) -> frozenset[Process]:
    """The processes that must have a write before it counts."""
    return sync_set.needed(member.view.sync, _counted(member, rules))


def _counted(member: Member, rules: Rules) -> SyncSet | None:
    """The set of the change that is under way."""
    return member.change.record.sync if member.change is not None and rules.open_change_counts else None


def _progress(world: World, member: Member) -> Progress:
    told = [place for place, write in enumerate(member.log, 1) if write in world.acknowledged | world.seen]
    acknowledged = max([member.began, *told])
    return Progress(len(member.log), dict(member.heard), member.saved, member.saved, acknowledged)


def _held(world: World, member: Member, me: Process, rules: Rules) -> int:
    """How much of the log all have that must have it."""
    if not rules.all_of_the_set_confirm and needed(member, rules) != {me}:
        return min(max((has for _, has in member.heard), default=0), len(member.log))
    return sync_set.held(member.view.sync, _counted(member, rules), me, _progress(world, member))


def _acknowledging(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me, name = (number, member.boot), name_of(number)
    has = _held(world, member, me, rules)
    if member.view.epoch == member.serving and _from_memory(member, rules):
        yield from _acknowledge(world, rules, number, member, has, "replicas", frozenset())
    yield from _acknowledge(world, rules, number, member, member.saved, "sync", frozenset(member.log[: member.saved]))
    if bounds.stale_reads and member.shown < has and frozenset(member.log[:has]) <= world.acknowledged:
        yield f"{name} may show {has}", partial(with_member, world, number, member._replace(shown=has))
    owns = world.record.active == me and world.record.epoch == member.serving
    if bounds.reads and owns and _readable(world, member, me, rules):
        shown = world._replace(seen=world.seen | frozenset(member.log))
        yield f"{name} answers a read with {member.log}", partial(World._replace, shown)


def _readable(world: World, member: Member, me: Process, rules: Rules) -> bool:
    """Whether a reader may see the whole log."""
    if not rules.readers_see_what_all_have:
        return True
    agreed, change, progress = member.view.sync, _counted(member, rules), _progress(world, member)
    if not rules.readers_see_what_is_saved:
        return sync_set.held(agreed, change, me, progress) == len(member.log)
    return sync_set.visible(agreed, change, me, progress) == len(member.log)


def _from_memory(member: Member, rules: Rules) -> bool:
    """Whether a write may be acknowledged before etcd has it."""
    agreed, change = member.view.sync, member.change.record.sync if member.change is not None else None
    if not rules.open_forgetting_stops and change is not None:
        change = change._replace(memory=True)
    if not rules.memory_is_announced:
        agreed = agreed._replace(memory=True)
    return sync_set.acknowledges_from_memory(agreed, change) or (
        not rules.two_have_it and agreed.memory and needed(member, rules) == {member.view.active}
    )


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
    name, spent = name_of(number), world.spent
    for kind, told, change in _changes(world, rules, member):
        if change is not None and getattr(spent, f"{kind}s") < getattr(bounds, f"{kind}s"):
            record = member.view._replace(sync=change)
            yield f"{name} {told}", partial(_send, world, number, member, kind, record)
    if spent.shrinks < bounds.shrinks:
        yield from _shrinking(world, rules, number, member)
    if spent.handovers < bounds.handovers:
        yield from _handing_over(world, number, member)


def _changes(world: World, rules: Rules, member: Member) -> Iterator[tuple[str, str, SyncSet | None]]:
    """Growths and changes of ``memory`` by the active: the kind, what it is, and the set (None: not now)."""
    agreed, progress = member.view.sync, _progress(world, member)
    careless = progress._replace(saved=progress.acknowledged)
    eager = progress
    if not rules.learner_has_what_is_acknowledged:
        eager = eager._replace(acknowledged=0)
    if not rules.learner_has_what_is_saved:
        eager = eager._replace(sent=0)
    for learner in sorted(set(progress.confirmed) - agreed.members):
        yield "growth", f"adds {name_of(learner[0])} to the set", sync_set.with_learner(agreed, learner, eager)
    forgetting = sync_set.all_saved(agreed, progress if rules.forgetting_saves_first else careless)
    yield "memory_change", "says that all is saved", forgetting
    yield "memory_change", "announces writes in memory", sync_set.announced(agreed)


def _shrinking(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    agreed, me, progress = member.view.sync, (number, member.boot), _progress(world, member)
    for other in sorted(agreed.members - {me}):
        removal = sync_set.without(agreed, {other}, me, progress)
        if not rules.shrink_saves_first:
            removal = sync_set.without(agreed, {other}, me, progress._replace(saved=progress.acknowledged))
        if removal is not None:
            record = member.view._replace(sync=removal.sync)
            saves = member.log[: progress.acknowledged] if removal.saves else ()
            told = f"{name_of(number)} takes {name_of(other[0])} out of the set"
            yield told, partial(_send, world, number, member, "shrink", record, saves)


def _handing_over(world: World, number: int, member: Member) -> Iterator[Step]:
    me, view = (number, member.boot), member.view
    for other in sorted(view.sync.members - {me}):
        after = sync_set.handed_over(view.sync, me, other)
        assert after is not None
        record = Record(0, view.epoch + 1, other, after)
        told = f"{name_of(number)} hands over to {name_of(other[0])}"
        yield told, partial(_send, world, number, member, "handover", record)


def _send(world: World, number: int, member: Member, kind: str, record: Record, saves: tuple[int, ...] = ()) -> World:
    change = Change(kind, (number, member.boot), member.view.revision, record._replace(revision=0), saves)
    return _spend(_open_change(world, number, member, change), "claims" if kind == "loss" else f"{kind}s")


# -- taking the slot --


def _claiming(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me, name, view = (number, member.boot), name_of(number), member.view
    if world.spent.claims >= bounds.claims or member.change is not None or view.active == me:
        return
    agreed = view.sync
    if not rules.only_the_set_claims or (not rules.boots_are_identities and _named(agreed, number)):
        agreed = agreed._replace(members=agreed.members | {me})
    claim = sync_set.claim(agreed, view.active, me, _dead(world, rules, view))
    if claim is None:
        return
    after, source = claim.sync, claim.source
    if not rules.claim_keeps_the_others and source is Source.MEMORY:
        after = after._replace(members=frozenset({me}))
    if claim.loss and not rules.former_actives_bring_what_they_have:
        after, source = SyncSet(frozenset({me})), Source.ETCD
    record = Record(0, view.epoch + 1, me, after, source)
    told = f"{name} claims epoch {record.epoch} from {source}{' after a loss' if claim.loss else ''}"
    yield told, partial(_send, world, number, member, "loss" if claim.loss else "claim", record)


def _named(agreed: SyncSet, number: int) -> bool:
    return any(process[0] == number for process in agreed.members)


def _dead(world: World, rules: Rules, view: Record) -> frozenset[Process]:
    """Who is taken for dead: who is."""
    dead = {process for process in view.sync.members | view.sync.former | {view.active} if not runs(world, process)}
    if not rules.loss_proves_the_set_dead:
        dead |= view.sync.members | {view.active}
    if not rules.loss_proves_former_actives_dead:
        dead |= view.sync.former
    return frozenset(dead)


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
    log = world.checkpoint if view.source is Source.ETCD else member.log
    if view.source is Source.BOTH:
        log = (*log, *(write for write in world.checkpoint if write not in log))
    serving = member._replace(
        log=log,
        follows=view.epoch,
        known=view.epoch,
        serving=view.epoch,
        heard=(),
        saved=len(log) if view.source is Source.ETCD else 0,
        began=len(log),
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
    memory = member.view.sync.memory and (change is None or change.record.sync.memory)
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
