"""What can happen next to a slot whose members replicate to each other: every step of a member, etcd or the network.

A pause needs no step of its own: a member that is not chosen for a while is paused. Nor does the loss of a message, or
of etcd's answer to a change: a member learns what became of its change by its watch, and a watch that is not chosen
lags. A transaction whose compares fail for ever is forgotten.
"""

from collections.abc import Callable, Iterator
from functools import partial

from tests.model.replication.world import (
    Bounds,
    Change,
    Confirmation,
    Frame,
    Member,
    Message,
    Owner,
    Process,
    Promise,
    Records,
    Refusal,
    Rules,
    Save,
    Saved,
    SyncRecord,
    Violation,
    World,
    agreed,
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
                told = f"etcd gets {name_of(message.sender[0])}'s {message.kind} (compares {message.compares})"
                yield told, partial(_carry_out, arrived, message)
                if world.spent.resends < bounds.resends:
                    yield f"{told}, which arrives twice", partial(_carry_out, _spend(world, "resends"), message)
            case Save():
                told = f"etcd gets {name_of(message.sender[0])}'s save of {message.log}"
                yield told, partial(_save, arrived, message)
            case Saved():
                told = f"{name_of(message.to[0])} hears that etcd has {message.length}"
                yield told, partial(_heard_saved, arrived, message)
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
            yield from _watching(world, bounds, number, member)
            yield from _living(world, rules, bounds, number, member)
        elif world.spent.restarts < bounds.restarts:
            yield f"{name_of(number)} starts again", partial(_restart, world, number, member)


def _living(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name = name_of(number)
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


def _watching(world: World, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name, records, view = name_of(number), world.records, member.view
    if view != records:
        yield f"{name} sees the records of {records.revisions}", partial(_watch, world, number, member, records)
    if bounds.torn and view.owner != records.owner and view.sync != records.sync:
        owner, sync = view._replace(owner=records.owner), view._replace(sync=records.sync)
        yield f"{name} sees the owner record of {owner.revisions}", partial(_watch, world, number, member, owner)
        yield f"{name} sees the sync record of {sync.revisions}", partial(_watch, world, number, member, sync)


def _carry_out(world: World, change: Change) -> World:
    records = world.records
    if not _applies(records, change):
        return world
    if change.kind == "loss":
        world = _lost(world, change)
    (owner, sync), (first, second) = records, records.revisions
    if change.owner is not None:
        owner = change.owner._replace(revision=first + 1)
    if change.sync is not None:
        sync = change.sync._replace(revision=second + 1)
    after = Records(owner, sync)
    transit = frozenset(message for message in world.transit if _may_matter(message, after))
    return world._replace(records=after, transit=transit, checkpoint=change.saves or world.checkpoint)


def _applies(records: Records, change: Change) -> bool:
    if change.both:
        return records.revisions == change.compares
    return records.owner.revision == change.compares[0]


def _may_matter(message: Message, records: Records) -> bool:
    """Whether a message can still have an effect: revisions only rise, so a compare that fails never holds again."""
    match message:
        case Change():
            return _applies(records, message)
        case Save():
            return message.compares in (0, records.owner.revision)
    return True


def _save(world: World, save: Save) -> World:
    if save.compares not in (0, world.records.owner.revision):
        return world
    sender = world.members[save.sender[0]]
    after = world._replace(checkpoint=save.log)
    if not runs(world, save.sender) or sender.serving != save.epoch:
        return after
    return after._replace(transit=after.transit | {Saved(save.sender, save.epoch, len(save.log))})


def _heard_saved(world: World, word: Saved) -> World:
    member = world.members[word.to[0]]
    if not runs(world, word.to) or member.serving != word.epoch:
        return world
    return with_member(world, word.to[0], member._replace(saving=0, saved=max(member.saved, word.length)))


def _lost(world: World, change: Change) -> World:
    """A loss: what its claimer and etcd lack has died with everybody who had it, and nothing ``sync`` is missing."""
    left = frozenset(world.checkpoint)
    if change.owner is not None and change.owner.source is Source.BOTH and runs(world, change.sender):
        left |= frozenset(world.members[change.sender[0]].log)
    missing = world.acknowledged - left
    if missing & world.synced:
        raise Violation(f"no sync write is lost: {sorted(missing & world.synced)}")
    for write, holder in sorted(world.holders):
        if write in missing and runs(world, holder):
            raise Violation(f"nothing is given up while somebody has it: {name_of(holder[0])} has w{write}")
    return world._replace(acknowledged=world.acknowledged & left, seen=world.seen & left)


def _watch(world: World, number: int, member: Member, view: Records) -> World:
    change, epoch = member.change, view.owner.epoch
    seen = member._replace(view=view, known=max(member.known, epoch))
    if change is not None and view.revisions != change.compares:
        seen = seen._replace(change=None)
        if epoch == member.serving:
            seen = seen._replace(saved=max(seen.saved, len(change.saves)))
    if seen.serving and epoch > seen.serving:
        seen = _stopped(seen)
    return with_member(world, number, seen)


def _stopped(member: Member) -> Member:
    return member._replace(serving=0, heard=(), asked=0, promises=frozenset(), saving=0, saved=0, began=0)


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
    if spent.saves < bounds.saves:
        yield from _saving(world, rules, number, member)
    if member.view.owner.epoch == member.serving and member.change is None:
        yield from _changing(world, rules, bounds, number, member)
    yield from _reading(world, rules, bounds, number, member)


def _saving(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    """A save may be sent while the set changes. One is under way at a time, and none beside a removal that saves."""
    me, owner = (number, member.boot), member.view.owner
    busy = member.saving or (rules.one_batch_at_a_time and member.change is not None and member.change.saves)
    fenced = owner == world.records.owner or not rules.saves_compare_the_owner
    if member.saved == len(member.log) or busy or not fenced or owner.epoch != member.serving:
        return
    upto = _savable(world, member, me, rules)
    if upto <= member.saved:
        return
    compares = owner.revision if rules.saves_compare_the_owner else 0
    save = Save(me, compares, member.serving, member.log[:upto])
    sent = with_member(world, number, member._replace(saving=upto))
    after = sent._replace(transit=sent.transit | {save})
    yield f"{name_of(number)} sends a save of {save.log}", partial(_spend, after, "saves")


def needed(member: Member, rules: Rules) -> frozenset[Process]:
    """The processes that must have a write before it counts."""
    return sync_set.needed(agreed(member.view, rules), _counted(member, rules))


def _after(member: Member) -> SyncSet | None:
    """The set of the change that is under way."""
    change = member.change
    return change.sync.sync if change is not None and change.sync is not None else None


def _counted(member: Member, rules: Rules) -> SyncSet | None:
    """The set of the change that is under way, if it counts."""
    return _after(member) if rules.open_change_counts else None


def _progress(world: World, member: Member, me: Process, rules: Rules) -> Progress:
    told = [place for place, write in enumerate(member.log, 1) if write in world.acknowledged | world.seen]
    acknowledged, sent = max([member.began, *told]), max(member.saving, member.saved)
    progress = Progress(len(member.log), dict(member.heard), sent, member.saved, acknowledged)
    has = sync_set.held(agreed(member.view, rules), _counted(member, rules), me, progress)
    return progress._replace(kept_back=1) if has < member.began and rules.saves_keep_what_is_newer else progress


def _held(world: World, member: Member, me: Process, rules: Rules) -> int:
    """How much of the log all have that must have it."""
    if not rules.all_of_the_set_confirm and needed(member, rules) != {me}:
        return min(max((has for _, has in member.heard), default=0), len(member.log))
    progress = _progress(world, member, me, rules)
    return sync_set.held(agreed(member.view, rules), _counted(member, rules), me, progress)


def _savable(world: World, member: Member, me: Process, rules: Rules) -> int:
    """How much of the log may be saved."""
    if not rules.saved_is_what_all_have:
        return len(member.log)
    progress = _progress(world, member, me, rules)
    return sync_set.savable(agreed(member.view, rules), _counted(member, rules), me, progress)


def _acknowledging(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me, name = (number, member.boot), name_of(number)
    has = _held(world, member, me, rules)
    if member.view.owner.epoch == member.serving and _from_memory(member, rules):
        yield from _acknowledge(world, rules, number, member, has, "replicas", frozenset())
    yield from _acknowledge(world, rules, number, member, member.saved, "sync", frozenset(member.log[: member.saved]))
    if bounds.stale_reads and member.shown < has and frozenset(member.log[:has]) <= world.acknowledged:
        yield f"{name} may show {has}", partial(with_member, world, number, member._replace(shown=has))
    owner = world.records.owner
    owns = owner.active == me and owner.epoch == member.serving
    if bounds.reads and owns and _readable(world, member, me, rules):
        shown = world._replace(seen=world.seen | frozenset(member.log))
        yield f"{name} answers a read with {member.log}", partial(World._replace, shown)


def _readable(world: World, member: Member, me: Process, rules: Rules) -> bool:
    """Whether a reader may see the whole log."""
    if not rules.readers_see_what_all_have:
        return True
    now, change, progress = agreed(member.view, rules), _counted(member, rules), _progress(world, member, me, rules)
    if not rules.readers_see_what_is_saved:
        return sync_set.held(now, change, me, progress) == len(member.log)
    return sync_set.visible(now, change, me, progress) == len(member.log)


def _from_memory(member: Member, rules: Rules) -> bool:
    """Whether a write may be acknowledged before etcd has it."""
    now, change = agreed(member.view, rules), _after(member)
    if not rules.open_forgetting_stops and change is not None:
        change = change._replace(memory=True)
    if not rules.memory_is_announced:
        now = now._replace(memory=True)
    return sync_set.acknowledges_from_memory(now, change) or (
        not rules.two_have_it and now.memory and needed(member, rules) == {member.view.owner.active}
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


# -- changes of the records by their active --


def _changing(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name, spent, epoch = name_of(number), world.spent, member.serving
    more = spent.growths < bounds.growths or spent.memory_changes < bounds.memory_changes
    for kind, told, after in _changes(world, rules, number, member) if more else ():
        if after is not None and getattr(spent, f"{kind}s") < getattr(bounds, f"{kind}s"):
            change = _set_change(member, rules, kind, number, SyncRecord(0, epoch, after))
            yield f"{name} {told}", partial(_send, world, change)
    if spent.shrinks < bounds.shrinks:
        yield from _shrinking(world, rules, number, member)
    if spent.handovers < bounds.handovers:
        yield from _handing_over(world, rules, number, member)


def _set_change(
    member: Member, rules: Rules, kind: str, number: int, record: SyncRecord, saves: tuple[int, ...] = ()
) -> Change:
    me, both = (number, member.boot), rules.set_changes_compare_both
    return Change(kind, me, member.view.revisions, None, record, saves, both)


def _changes(world: World, rules: Rules, number: int, member: Member) -> Iterator[tuple[str, str, SyncSet | None]]:
    """Growths and changes of ``memory`` by the active: the kind, what it is, and the set (None: not now)."""
    now, progress = agreed(member.view, rules), _progress(world, member, (number, member.boot), rules)
    careless = progress._replace(saved=progress.acknowledged)
    eager = progress
    if not rules.learner_has_what_is_acknowledged:
        eager = eager._replace(acknowledged=0)
    if not rules.learner_has_what_is_saved:
        eager = eager._replace(sent=0)
    for learner in sorted(set(progress.confirmed) - now.members):
        yield "growth", f"adds {name_of(learner[0])} to the set", sync_set.with_learner(now, learner, eager)
    forgetting = sync_set.all_saved(now, progress if rules.forgetting_saves_first else careless)
    yield "memory_change", "says that all is saved", forgetting
    yield "memory_change", "announces writes in memory", sync_set.announced(now)


def _shrinking(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    now, me = agreed(member.view, rules), (number, member.boot)
    progress = _progress(world, member, me, rules)
    for other in sorted(now.members - {me}):
        removal = sync_set.without(now, {other}, me, progress)
        if not rules.shrink_saves_first:
            removal = sync_set.without(now, {other}, me, progress._replace(saved=progress.acknowledged))
        if removal is not None and not (removal.saves and member.saving and rules.one_batch_at_a_time):
            record = SyncRecord(0, member.serving, removal.sync)
            saves = member.log[: progress.acknowledged] if removal.saves else ()
            told = f"{name_of(number)} takes {name_of(other[0])} out of the set"
            yield told, partial(_send, world, _set_change(member, rules, "shrink", number, record, saves))


def _handing_over(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    me, view = (number, member.boot), member.view
    now, epoch = agreed(view, rules), view.owner.epoch + 1
    for other in sorted(now.members - {me}):
        after = sync_set.handed_over(now, me, other)
        assert after is not None
        change = Change("handover", me, view.revisions, Owner(0, epoch, other), SyncRecord(0, epoch, after))
        yield f"{name_of(number)} hands over to {name_of(other[0])}", partial(_send, world, change)


def _send(world: World, change: Change) -> World:
    number = change.sender[0]
    sent = with_member(world, number, world.members[number]._replace(change=change))
    sent = sent._replace(transit=sent.transit | {change})
    return _spend(sent, "claims" if change.kind == "loss" else f"{change.kind}s")


# -- taking the slot --


def _claiming(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me, name, view = (number, member.boot), name_of(number), member.view
    if world.spent.claims >= bounds.claims or member.change is not None or view.owner.active == me:
        return
    now, epoch = agreed(view, rules), view.owner.epoch + 1
    if bounds.plain and not view.valid:
        owner = Owner(0, epoch, me, Source.ETCD, plain=True)
        claim = Change("claim", me, view.revisions, owner, None, both=rules.plain_claims_compare_both)
        yield f"{name} claims epoch {epoch} as that of a plain slot", partial(_send, world, claim)
    if not rules.only_the_set_claims or (not rules.boots_are_identities and _named(now, number)):
        now = now._replace(members=now.members | {me})
    found = sync_set.claim(now, view.owner.active, me, _dead(world, rules, view))
    if found is None:
        return
    after, source = found.sync, found.source
    if not rules.claim_keeps_the_others and source is Source.MEMORY:
        after = after._replace(members=frozenset({me}))
    if found.loss and not rules.former_actives_bring_what_they_have:
        after, source = SyncSet(frozenset({me})), Source.ETCD
    kind, both = "loss" if found.loss else "claim", rules.claims_compare_both
    claim = Change(kind, me, view.revisions, Owner(0, epoch, me, source), SyncRecord(0, epoch, after), both=both)
    told = f"{name} claims epoch {epoch} from {source}{' after a loss' if found.loss else ''}"
    yield told, partial(_send, world, claim)


def _named(now: SyncSet, number: int) -> bool:
    return any(process[0] == number for process in now.members)


def _dead(world: World, rules: Rules, view: Records) -> frozenset[Process]:
    """Who is taken for dead: who is."""
    now, active = agreed(view, rules), view.owner.active
    dead = {process for process in now.members | now.former | {active} if not runs(world, process)}
    if not rules.loss_proves_the_set_dead:
        dead |= now.members | {active}
    if not rules.loss_proves_former_actives_dead:
        dead |= now.former
    return frozenset(dead)


def _begin(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    """Who sees that it is the active begins to serve."""
    view, owner = member.view, member.view.owner
    if owner.active != (number, member.boot) or owner.epoch < member.known or owner.epoch <= member.follows:
        return
    if rules.actives_begin_with_both_records and not view.valid and not owner.plain:
        return
    if rules.promises_outlast_the_deadline and any(
        question not in world.expired and runs(world, world.askers[question - 1]) for question in member.promised
    ):
        return
    yield f"{name_of(number)} begins to serve in epoch {owner.epoch}", partial(_serve, world, rules, number, member)


def _serve(world: World, rules: Rules, number: int, member: Member) -> World:
    owner, me = member.view.owner, (number, member.boot)
    log = world.checkpoint if owner.source is Source.ETCD else member.log
    if owner.source is Source.BOTH:
        log = (*log, *(write for write in world.checkpoint if write not in log))
    shown = 0 if owner.source is Source.ETCD else member.shown
    others = agreed(member.view, rules).members - {me} if shown else ()
    serving = member._replace(
        log=log,
        follows=owner.epoch,
        known=owner.epoch,
        serving=owner.epoch,
        heard=tuple((other, shown) for other in sorted(others)),
        saving=0,
        saved=len(log) if owner.source is Source.ETCD else 0,
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
    after, epoch = _after(member), member.view.owner.epoch
    memory = agreed(member.view, rules).memory and (after is None or after.memory)
    if promised and (memory or not rules.promises_need_memory) and epoch == member.serving:
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
    left = frozenset(m for m in world.transit if isinstance(m, Change | Save) or m.to != process)
    gone = Member(False, member.boot, member.view, 0)
    return _spend(with_member(world, number, gone)._replace(transit=left), "deaths")


def _restart(world: World, number: int, member: Member) -> World:
    boot = member.boot + 1
    fresh = Member(True, boot, world.records, world.records.owner.epoch)
    return _spend(with_member(world, number, fresh), "restarts")
