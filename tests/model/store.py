"""The modelled etcd: carries one transaction out, and checks what must hold of its history.

A transaction may arrive at any time after it was sent, twice if it was sent twice, or never. Its answer travels back
in the same way.
"""

from tests.model.world import (
    Answer,
    OwnerPut,
    Rules,
    SessionPut,
    Txn,
    Violation,
    World,
    name_of,
    newest,
    record_at,
    value_at,
)


def carried_out(world: World, rules: Rules, txn: Txn) -> World:
    """The world after etcd has carried ``txn`` out, its answer on the way if anybody still waits for it."""
    after, won = _put_sessions(world, rules, txn) if txn.kind == "write" else _put_owner(world, rules, txn)
    owner = after.owners[-1].revision
    asked = _replaced(world, txn) if txn.kind in ("claim", "take") else txn.member
    marker, batch = after.markers[asked]
    sender = world.members[txn.member]
    if txn not in (sender.txn, sender.batch):
        return after
    return after._replace(
        answers=after.answers | {Answer(txn, won, after.revision if won else 0, owner, marker, batch)}
    )


def _replaced(world: World, txn: Txn) -> int:
    """Whose commit marker a claim reads: that of the member whose record it compares."""
    return "abc".index(record_at(world, txn.fence).active)


def _put_owner(world: World, rules: Rules, txn: Txn) -> tuple[World, bool]:
    before = world.owners[-1]
    compared = rules.claim_compares_owner or txn.kind != "claim"
    if compared and before.revision != txn.fence:
        return world, False
    record = txn.record
    assert record is not None
    if record.epoch < before.record.epoch or (record.epoch == before.record.epoch and not record.handover):
        raise Violation(f"epochs rise: {record.epoch} after {before.record.epoch}")
    revision = world.revision + 1
    return world._replace(revision=revision, owners=(*world.owners, OwnerPut(revision, record))), True


def _put_sessions(world: World, rules: Rules, txn: Txn) -> tuple[World, bool]:
    if rules.write_compares_owner and world.owners[-1].revision != txn.fence:
        return world, False
    if rules.write_compares_marker and world.markers[txn.member][0] != txn.marker:
        return world, False
    revision = world.revision + 1
    puts = tuple(SessionPut(revision, write.session, write.value, txn.fence) for write in txn.writes)
    markers = list(world.markers)
    markers[txn.member] = (revision, (txn.boot, txn.batch))
    after = world._replace(revision=revision, sessions=world.sessions + puts, markers=tuple(markers))
    check_contents(after)
    return after, True


def check_contents(world: World) -> None:
    """No acknowledged write is missing from its session, and none stands in it twice."""
    contents = [value_at(world, session, newest(world, session)) for session in range(len(world.shown))]
    held = [request for content in contents for request in content]
    missing = world.acknowledged - set(held)
    if missing:
        raise Violation(f"no acknowledged write is lost: {', '.join(sorted(missing))}; etcd has {contents}")
    if len(held) != len(set(held)):
        raise Violation(f"no write is applied twice: etcd has {contents}")


def acknowledge(world: World, member: int, fence: int, requests: frozenset[str]) -> World:
    """Clients have the answer that ``requests`` are written, by the holder of the record of revision ``fence``."""
    record = record_at(world, fence)
    writers = world.writers | {(record.epoch, member, world.members[member].boot)}
    if len({epoch for epoch, _, _ in writers}) != len(writers):
        raise Violation(f"one writer per epoch: {sorted(writers)}")
    after = world._replace(acknowledged=world.acknowledged | requests, writers=writers)
    check_contents(after)
    return after


def repeated(world: World, session: int, request: str) -> World:
    """A client has the first answer to a request that took effect before, with the revision it did at."""
    at = next(put.revision for put in world.sessions if put.session == session and request in put.value)
    shown = list(world.shown)
    shown[session] = max(shown[session], at)
    after = world._replace(acknowledged=world.acknowledged | {request}, shown=tuple(shown))
    check_contents(after)
    return after


def check_opening(world: World, number: int, fence: int) -> None:
    """Whoever begins to serve under a record has every write that was made before that record.

    Its own write whose outcome it waits for may be missing: nobody was told of it, and the session stays closed to
    other writes until the outcome is known.
    """
    member = world.members[number]
    pending = {(write.session, write.value) for write in member.batch.writes} if member.batch else set()
    for put in world.sessions:
        open_still = (put.session, put.value) in pending
        if put.revision < fence and member.memory[put.session] < put.revision and not open_still:
            lacking = f"{put.value} of revision {put.revision}"
            raise Violation(f"serving means caught up: {name_of(number)} opens without {lacking}")
