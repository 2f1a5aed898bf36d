"""What can happen next to a slot whose members replicate to each other: every step of a member, etcd or the network.

A pause needs no step of its own: a member that is not chosen for a while is paused. Nor does the loss of a message, or
of etcd's answer to a change: a member learns what became of its change by its watch, and a watch that is not chosen
lags. A transaction whose compares fail for ever is forgotten.
"""

from collections.abc import Callable, Iterator
from functools import partial

from tests.model.explorer import Violation
from tests.model.replication.active import (
    from_memory,
    held,
    needed,
    progress,
    readable,
    savable,
    settled,
    stopped,
    takes_calls,
    visible,
)
from tests.model.replication.claims import began, claimed, claims, send, spend
from tests.model.replication.ownership import answered, heard, owning, taken
from tests.model.replication.ownership import told as told_to_take_over
from tests.model.replication.reading import asking, looking, promised, promising
from tests.model.replication.world import (
    Activate,
    Answer,
    Bounds,
    Change,
    Confirmation,
    Frame,
    Given,
    Member,
    Message,
    Process,
    Promise,
    Records,
    Refusal,
    Rules,
    Save,
    Saved,
    SyncRecord,
    World,
    agreed,
    name_of,
    runs,
    with_member,
)
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import SyncSet

Step = tuple[str, Callable[[], World]]


def moves(world: World, rules: Rules, bounds: Bounds) -> Iterator[Step]:
    """Every possible next step: what it is, and how to take it (which raises :class:`Violation` if it breaks one)."""
    for message in world.transit:
        arrived = world._replace(transit=world.transit - {message})
        match message:
            case Answer():
                told = f"{name_of(message.to[0])} hears of its {message.change.kind}"
                told = f"{told}: {'done' if message.done else 'refused'}"
                yield told, partial(heard, arrived, rules, bounds, message)
            case Activate():
                yield from told_to_take_over(world, rules, message)
            case Given():
                yield from taken(world, rules, bounds, message)
            case Change():
                told = f"etcd gets {name_of(message.sender[0])}'s {message.kind} (compares {message.compares})"
                yield told, partial(_carry_out, arrived, message)
                if world.spent.resends < bounds.resends:
                    yield f"{told}, which arrives twice", partial(_carry_out, spend(world, "resends"), message)
            case Save():
                told = f"etcd gets {name_of(message.sender[0])}'s save of {message.log}"
                yield told, partial(_save, arrived, rules, message)
                if world.spent.saves_again < bounds.saves_again:
                    again = spend(world, "saves_again")
                    yield f"{told}, which arrives twice", partial(_save, again, rules, message)
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
                yield told, partial(promised, arrived, message)
    if world.spent.words < bounds.words:
        said = world._replace(word=world.records.owner.epoch)
        yield f"an operator gives up what was in memory in epoch {said.word}", partial(spend, said, "words")
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
        if not bounds.answers:
            yield from _begin(world, rules, number, member)
    if bounds.answers:
        yield from owning(world, rules, bounds, number, member)
    yield from looking(world, rules, bounds, number, member)
    yield from promising(world, number, member)
    if world.spent.drops < bounds.drops and _drops(member, rules, (number, member.boot)):
        dropped = with_member(world, number, member._replace(log=(), follows=0, shown=0, blind=0, released=False))
        yield f"{name} drops its copy", partial(spend, dropped, "drops")
    visible = member.shown if rules.copies_show_what_is_acknowledged else len(member.log)
    if bounds.stale_reads and not frozenset(member.log[:visible]) <= world.seen:
        shown = world._replace(seen=world.seen | frozenset(member.log[:visible]))
        yield f"{name} shows a stale reader {member.log[:visible]}", partial(World._replace, shown)


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
        return answered(world, change, done=False)
    if change.kind == "loss":
        world = _lost(world, change)
    (owner, sync), (first, second) = records, records.revisions
    if change.kind == "resign":
        world = world._replace(resigned=world.resigned | {(change.sender, owner.epoch)})
    if change.owner is not None:
        if change.owner.epoch < owner.epoch + (change.kind != "leave"):
            raise Violation(f"epochs rise: {change.owner.epoch} after {owner.epoch}")
        owner = change.owner._replace(revision=first + 1)
    if change.sync is not None:
        sync = change.sync._replace(revision=second + 1)
    after = world._replace(records=Records(owner, sync), checkpoint=change.saves or world.checkpoint)
    transit = frozenset(message for message in world.transit if _may_matter(message, after))
    return answered(after._replace(transit=transit), change, done=True)


def _applies(records: Records, change: Change) -> bool:
    if change.compares == (0, 0):
        return True
    if change.both:
        return records.revisions == change.compares
    return records.owner.revision == change.compares[0]


def _may_matter(message: Message, world: World) -> bool:
    """Whether a message can still have an effect: revisions only rise, so a compare that fails never holds again."""
    match message:
        case Change():
            waits = message.answered and world.members[message.sender[0]].change == message
            return waits or _applies(world.records, message)
        case Save():
            return message.compares in (0, world.records.owner.revision)
    return True


def _save(world: World, rules: Rules, save: Save) -> World:
    if save.compares not in (0, world.records.owner.revision):
        return world
    number, marker = save.sender[0], world.markers[save.sender[0]]
    if marker == save.marker or not rules.saves_compare_the_marker:
        markers = (*world.markers[:number], save.marker + 1, *world.markers[number + 1 :])
        world = world._replace(checkpoint=save.log, markers=markers)
    elif marker != save.marker + 1:
        return world
    if not runs(world, save.sender) or world.members[number].serving != save.epoch:
        return world
    return world._replace(transit=world.transit | {Saved(save.sender, save.epoch, len(save.log))})


def _heard_saved(world: World, word: Saved) -> World:
    member = world.members[word.to[0]]
    if not runs(world, word.to) or member.serving != word.epoch:
        return world
    return with_member(world, word.to[0], member._replace(saving=0, saved=max(member.saved, word.length)))


def _lost(world: World, change: Change) -> World:
    """A loss: what etcd lacks has died with everybody else who had it, and nothing ``sync`` is missing.

    A former active that has resigned has given it up. If an operator has said so, it is given up whoever has it.
    """
    left = frozenset(world.checkpoint)
    missing = world.acknowledged - left
    if missing & world.synced:
        raise Violation(f"no sync write is lost: {sorted(missing & world.synced)}")
    epoch = world.records.owner.epoch
    if epoch == world.word:
        world = world._replace(forsaken=epoch)
    given_up = {change.sender} | {process for process, then in world.resigned if then == epoch}
    for write, holder in sorted(world.holders):
        if epoch != world.word and write in missing and holder not in given_up and runs(world, holder):
            raise Violation(f"nothing is given up while somebody has it: {name_of(holder[0])} has w{write}")
    return world._replace(acknowledged=world.acknowledged & left, seen=world.seen & left)


def _watch(world: World, number: int, member: Member, view: Records) -> World:
    change, epoch = member.change, view.owner.epoch
    seen = member._replace(view=view, known=max(member.known, epoch))
    if change is not None and not change.answered and view.revisions != change.compares:
        seen = seen._replace(change=None)
        if epoch == member.serving:
            seen = seen._replace(saved=max(seen.saved, len(change.saves)))
    if seen.serving and epoch > seen.serving:
        seen = stopped(seen)
    return with_member(world, number, seen)


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
    following = stopped(member) if member.serving else member
    following = following._replace(
        log=log,
        follows=frame.epoch,
        known=max(member.known, frame.epoch),
        released=False,
        shown=min(max(frame.shown, 0 if newer else member.shown), len(log)),
    )
    if not member.follows and not rules.copies_bring_outcomes:
        following = following._replace(blind=world.members[frame.sender[0]].saved)
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
    return with_member(world, word.to[0], stopped(member))


# -- serving --


def _serving(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    name, spent, me = name_of(number), world.spent, (number, member.boot)
    if spent.writes < bounds.writes and takes_calls(member):
        write = spent.writes + 1
        taken = with_member(world, number, member._replace(log=(*member.log, write)))
        yield f"{name} takes w{write}", partial(spend, taken, "writes")
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
            yield f"a frame from {name} to {name_of(other)} is delayed", partial(spend, delayed, "delayed")
    yield from _acknowledging(world, rules, bounds, number, member)
    if spent.saves < bounds.saves:
        yield from _saving(world, rules, number, member)
    if member.view.owner.epoch == member.serving and member.change is None and takes_calls(member):
        yield from _changing(world, rules, bounds, number, member)
    if spent.repeats < bounds.repeats and takes_calls(member) and settled(world, member, me, rules):
        yield from _repeating(world, rules, number, member)
    if spent.drops < bounds.drops:
        yield from _releasing(world, rules, number, member)
    yield from asking(world, rules, bounds, number, member)


def _repeating(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    """A client repeats a request: the active answers it if it knows the outcome, else it carries it out.

    It knows the outcomes of what readers may see. A repeat of a write that is under way waits for it.
    """
    name, me = name_of(number), (number, member.boot)
    for write in range(1, world.spent.writes + 1):
        if write in member.log[member.blind : visible(world, member, me, rules)]:
            told = f"{name} answers that it knows w{write}"
            if write not in world.acknowledged:
                after = world._replace(acknowledged=world.acknowledged | {write})
                yield told, partial(spend, after, "repeats")
        elif write not in member.log[member.began :]:
            log = (*member.log, write)
            if len(set(log)) < len(log):
                yield f"{name} takes w{write} again", partial(_applied_twice, log)
                continue
            again = with_member(world, number, member._replace(log=log))
            yield f"{name} takes w{write} again", partial(spend, again, "repeats")


def _applied_twice(log: tuple[int, ...]) -> World:
    raise Violation(f"no write is applied twice: {log}")


def _saving(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    """A save may be sent while the set changes. One is under way at a time, and none beside a removal that saves."""
    me, owner = (number, member.boot), member.view.owner
    busy = member.saving or (rules.one_batch_at_a_time and member.change is not None and member.change.saves)
    fenced = owner == world.records.owner or not rules.saves_compare_the_owner
    if member.saved == len(member.log) or busy or not fenced or owner.epoch != member.serving:
        return
    upto = savable(world, member, me, rules)
    if upto <= member.saved:
        return
    compares = owner.revision if rules.saves_compare_the_owner else 0
    save = Save(me, compares, member.serving, member.log[:upto], world.markers[number])
    sent = with_member(world, number, member._replace(saving=upto))
    after = sent._replace(transit=sent.transit | {save})
    yield f"{name_of(number)} sends a save of {save.log}", partial(spend, after, "saves")


def _acknowledging(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me, name = (number, member.boot), name_of(number)
    has = held(world, member, me, rules)
    forsaken = member.serving <= world.forsaken  # what it answers from memory is given up as well
    if member.view.owner.epoch == member.serving and from_memory(member, rules) and not forsaken:
        yield from _acknowledge(world, rules, number, member, has, "replicas", frozenset())
    yield from _acknowledge(world, rules, number, member, member.saved, "sync", frozenset(member.log[: member.saved]))
    if bounds.stale_reads and member.shown < has and frozenset(member.log[:has]) <= world.acknowledged:
        yield f"{name} may show {has}", partial(with_member, world, number, member._replace(shown=has))
    owner = world.records.owner
    owns = owner.active == me and owner.epoch == member.serving
    if bounds.reads and owns and readable(world, member, me, rules):
        shown = world._replace(seen=world.seen | frozenset(member.log))
        yield f"{name} answers a read with {member.log}", partial(World._replace, shown)


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
            yield f"{name} {told}", partial(_propose, world, change)
    if spent.shrinks < bounds.shrinks:
        yield from _shrinking(world, rules, number, member)


def _propose(world: World, change: Change) -> World:
    return spend(send(world, change), f"{change.kind}s")


def _set_change(
    member: Member, rules: Rules, kind: str, number: int, record: SyncRecord, saves: tuple[int, ...] = ()
) -> Change:
    me, both = (number, member.boot), rules.set_changes_compare_both
    return Change(kind, me, member.view.revisions, None, record, saves, both)


def _changes(world: World, rules: Rules, number: int, member: Member) -> Iterator[tuple[str, str, SyncSet | None]]:
    """Growths and changes of ``memory`` by the active: the kind, what it is, and the set (None: not now)."""
    now, known = agreed(member.view, rules), progress(world, member, (number, member.boot), rules)
    careless = known._replace(saved=known.acknowledged)
    eager = known
    if not rules.learner_has_what_is_acknowledged:
        eager = eager._replace(acknowledged=0)
    if not rules.learner_has_what_is_saved:
        eager = eager._replace(sent=0)
    for learner in sorted(set(known.confirmed) - now.members):
        yield "growth", f"adds {name_of(learner[0])} to the set", sync_set.with_learner(now, learner, eager)
    forgetting = sync_set.all_saved(now, known if rules.forgetting_saves_first else careless)
    yield "memory_change", "says that all is saved", forgetting
    yield "memory_change", "announces writes in memory", sync_set.announced(now)


def _shrinking(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    now, me = agreed(member.view, rules), (number, member.boot)
    known = progress(world, member, me, rules)
    for other in sorted(now.members - {me}):
        removal = sync_set.without(now, {other}, me, known)
        if not rules.shrink_saves_first:
            removal = sync_set.without(now, {other}, me, known._replace(saved=known.acknowledged))
        if removal is not None and not (removal.saves and member.saving and rules.one_batch_at_a_time):
            record = SyncRecord(0, member.serving, removal.sync)
            saves = member.log[: known.acknowledged] if removal.saves else ()
            told = f"{name_of(number)} takes {name_of(other[0])} out of the set"
            yield told, partial(_propose, world, _set_change(member, rules, "shrink", number, record, saves))


# -- taking the slot --


def _claiming(world: World, rules: Rules, bounds: Bounds, number: int, member: Member) -> Iterator[Step]:
    me = (number, member.boot)
    if world.spent.claims >= bounds.claims or member.change is not None or member.view.owner.active == me:
        return
    for told, claim in claims(world, rules, bounds, number, member):
        yield f"{name_of(number)} {told}", partial(claimed, world, rules, claim)


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
    told = f"{name_of(number)} begins to serve in epoch {owner.epoch}"
    yield told, partial(began, world, rules, number, member, owner.source)


def _drops(member: Member, rules: Rules, me: Process) -> bool:
    """Whether a member forgets its copy: it is not in the set as far as it knows.

    It may be, by a change that it has not heard of, unless its active has released it, or it follows nobody any more.
    """
    view = member.view
    if member.serving or not member.follows or me in agreed(view, rules).members:
        return False
    return not rules.copies_stay_while_they_count or (
        view.valid and (member.released or member.follows < view.owner.epoch)
    )


def _releasing(world: World, rules: Rules, number: int, member: Member) -> Iterator[Step]:
    """An active releases a process that is not in the set: it forgets what this one has confirmed, and tells it so."""
    counted = needed(member, rules)
    for other, _ in member.heard:
        if other not in counted:
            heard = tuple(entry for entry in member.heard if entry[0] != other)
            transit = frozenset(m for m in world.transit if not (isinstance(m, Confirmation) and m.sender == other))
            after = with_member(world, number, member._replace(heard=heard))._replace(transit=transit)
            copy = world.members[other[0]]
            if runs(world, other) and copy.follows == member.serving:
                after = with_member(after, other[0], copy._replace(released=True))
            yield f"{name_of(number)} releases {name_of(other[0])}", partial(World._replace, after)


# -- failing --


def _die(world: World, number: int, member: Member) -> World:
    process = (number, member.boot)
    left = frozenset(m for m in world.transit if isinstance(m, Change | Save) or m.to != process)
    gone = Member(False, member.boot, member.view, 0)
    return spend(with_member(world, number, gone)._replace(transit=left), "deaths")


def _restart(world: World, number: int, member: Member) -> World:
    boot = member.boot + 1
    fresh = Member(True, boot, world.records, world.records.owner.epoch, looked=world.records.owner.revision)
    return spend(with_member(world, number, fresh), "restarts")
