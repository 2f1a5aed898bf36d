"""Claims of the slot, and the beginning of an epoch."""

from collections.abc import Iterator

from tests.model.replication.active import stopped
from tests.model.replication.world import (
    Bounds,
    Change,
    Member,
    Owner,
    Process,
    Records,
    Rules,
    SyncRecord,
    World,
    agreed,
    runs,
    with_member,
)
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Source, SyncSet


def spend(world: World, kind: str) -> World:
    """The world in which one more event of a bounded kind has happened."""
    return world._replace(spent=world.spent._replace(**{kind: getattr(world.spent, kind) + 1}))


def send(world: World, change: Change) -> World:
    """The world in which a change is on its way."""
    number = change.sender[0]
    sent = with_member(world, number, world.members[number]._replace(change=change))
    return sent._replace(transit=sent.transit | {change})


def claims(
    world: World, rules: Rules, bounds: Bounds, number: int, member: Member, *, quiet: bool = False
) -> Iterator[tuple[str, Change]]:
    """The claims that a member may make by what it knows, in words, and how it lets others claim.

    ``quiet``: the owner has given the slot up.
    """
    me, view = (number, member.boot), member.view
    now, epoch = agreed(view, rules), view.owner.epoch + rules.claims_raise_the_epoch
    compares, answered = view.revisions, bounds.answers
    if bounds.plain and not view.valid:
        owner = Owner(0, epoch, me, Source.ETCD, plain=True)
        claim = Change("claim", me, compares, owner, None, both=rules.plain_claims_compare_both, answered=answered)
        yield f"claims epoch {epoch} as an earlier release", claim
    if not rules.only_the_set_claims or (not rules.boots_are_identities and _named(now, number)):
        now = now._replace(members=now.members | {me})
    dead = _dead(world, rules, view)
    if world.word and (world.word == view.owner.epoch or not rules.words_are_about_one_epoch):
        dead = (now.members | now.former | {view.owner.active}) - {me}
    left = sync_set.resigned(now, view.owner.active, me, dead)
    if left is not None:
        record = SyncRecord(0, view.owner.epoch, left)
        yield "resigns", Change("resign", me, compares, None, record, both=True)
    found = sync_set.claim(now, view.owner.active, me, dead)
    if found is None or (bounds.answers and found.source is Source.MEMORY and not member.follows):
        return
    after, source = found.sync, found.source
    if not rules.claim_keeps_the_others and source is Source.MEMORY:
        after = after._replace(members=frozenset({me}))
    kind, both = "loss" if found.loss else "claim", rules.claims_compare_both
    if not rules.claims_compare_the_owner:
        compares, both = (0, 0), False
    owner, record = Owner(0, epoch, me, source, quiet=quiet), SyncRecord(0, epoch, after)
    told = f"claims epoch {epoch} from {source}{' after a loss' if found.loss else ''}"
    yield told, Change(kind, me, compares, owner, record, both=both, answered=answered)


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


def claimed(world: World, rules: Rules, change: Change) -> World:
    """The world in which a claim is on its way."""
    owner = change.owner
    if owner is not None and owner.source is Source.ETCD and not rules.claims_from_etcd_read_after:
        number = change.sender[0]
        world = with_member(world, number, world.members[number]._replace(log=world.checkpoint))
        change = change._replace(owner=owner._replace(source=Source.MEMORY))
    return send(world, change) if change.kind == "resign" else spend(send(world, change), "claims")


def began(world: World, rules: Rules, number: int, member: Member, source: Source) -> World:
    """The world in which a member serves under the owner record that it knows."""
    owner, me = member.view.owner, (number, member.boot)
    log = world.checkpoint if source is Source.ETCD else member.log
    shown = 0 if source is Source.ETCD else member.shown
    others = agreed(member.view, rules).members - {me} if shown else ()
    blind = member.blind
    if source is Source.ETCD:
        blind = 0 if rules.claims_from_etcd_read_outcomes else len(log)
    serving = stopped(member)._replace(
        log=log,
        follows=owner.epoch,
        known=max(owner.epoch, member.known),
        serving=owner.epoch,
        heard=tuple((other, shown) for other in sorted(others)),
        saved=len(log) if source is Source.ETCD else 0,
        began=len(log),
        shown=min(member.shown, len(log)),
        reading=True,
        given=0,
        blind=blind if rules.outcomes_go_with_writes else len(log),
    )
    return with_member(world, number, serving)
