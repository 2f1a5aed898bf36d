"""What a member makes of an answer from etcd: the second half of every transaction.

A transaction that was refused may have been applied by an earlier try: then the owner record is the very one it would
have written, or the commit marker names its batch.
"""

from tests.model import protocol
from tests.model.store import acknowledge, check_opening
from tests.model.world import Activate, Answer, Holding, Member, Rules, Settled, World, fresh_batch, name_of, record_at


def with_member(world: World, number: int, member: Member) -> World:
    """The world with one member changed."""
    members = world.members
    return world._replace(members=(*members[:number], member, *members[number + 1 :]))


def learn(world: World, number: int, member: Member, revision: int) -> Member:
    """The member after it saw the owner record of ``revision``: one of somebody else's ends its own holding."""
    view = max(member.view, revision)
    holding = member.holding
    if (
        holding is not None
        and view > holding.fence
        and not protocol.mine(name_of(number), member.boot, record_at(world, view))
    ):
        holding = None
    return member._replace(view=view, holding=holding)


def reopened(member: Member) -> Member:
    """The member with its gate open, unless the slot is lost or on its way to somebody else."""
    holding = member.holding
    if holding is None or holding.record.handover:
        return member
    return member._replace(holding=holding._replace(gate="open"))


def received(world: World, rules: Rules, answer: Answer) -> World:
    """The world after the sender has heard the answer."""
    world = world._replace(answers=world.answers - {answer})
    number = answer.txn.member
    member = world.members[number]
    match answer.txn.kind:
        case "write":
            return _written(world, answer, number, member._replace(batch=None))
        case "claim":
            return _claimed(world, rules, answer, number, member._replace(txn=None))
        case "take":
            return _taken(world, rules, answer, number, member._replace(txn=None))
        case "take up":
            return _taken_up(world, rules, answer, number, member._replace(txn=None))
        case "leave":
            return _left(world, rules, answer, number, member._replace(txn=None))
        case kind:
            return _settled(world, rules, answer, number, member._replace(txn=None), undone=kind == "undo")


def _applied(world: World, answer: Answer) -> int:
    """The revision at which a transaction put its owner record, by this try or an earlier one; 0 if it did not."""
    if answer.won:
        return answer.revision
    return answer.owner if record_at(world, answer.owner) == answer.txn.record else 0


def _refused(rules: Rules, answer: Answer, member: Member) -> Member:
    """The member with the owner record that it was refused for."""
    return member._replace(view=max(member.view, answer.owner)) if rules.refusal_teaches else member


def _outdated(rules: Rules, member: Member, revision: int) -> bool:
    """Whether a newer owner record is known than the one an answer tells of: what that one gave is over."""
    return rules.late_answers_yield and member.view > revision


def _claimed(world: World, rules: Rules, answer: Answer, number: int, member: Member) -> World:
    revision = _applied(world, answer)
    record = answer.txn.record
    if not revision or record is None or _outdated(rules, member, revision):
        return with_member(world, number, _refused(rules, answer, member))
    replaced = "abc".index(record_at(world, answer.txn.fence).active)
    marker = answer.marker if answer.won else world.markers[replaced][0]
    needed = max(marker if rules.claim_counts_marker else 0, answer.txn.fence)
    gate = "lease" if rules.lease and rules.claim_outwaits_readers else "catch up"
    holding = Holding(revision, record, gate, needed)
    return with_member(world, number, member._replace(view=max(member.view, revision), holding=holding))


def _taken(world: World, rules: Rules, answer: Answer, number: int, member: Member) -> World:
    """A slot was claimed that its owner has given up; the owner is told what that means for its batch."""
    revision = _applied(world, answer)
    record = answer.txn.record
    if not revision or record is None or _outdated(rules, member, revision):
        return with_member(world, number, _refused(rules, answer, member))
    giver = "abc".index(record_at(world, answer.txn.fence).active)
    holding = Holding(revision, record, "catch up", max(answer.marker, answer.txn.fence))
    told = world._replace(transit=world.transit | {Settled(giver, revision, answer.marker, answer.marker_batch)})
    return with_member(told, number, member._replace(view=max(member.view, revision), holding=holding))


def _taken_up(world: World, rules: Rules, answer: Answer, number: int, member: Member) -> World:
    revision = _applied(world, answer)
    record = answer.txn.record
    if not revision or record is None or _outdated(rules, member, revision):
        return with_member(world, number, _refused(rules, answer, member))
    holding = Holding(revision, record, "catch up", revision)
    return with_member(world, number, member._replace(view=max(member.view, revision), holding=holding))


def settled(world: World, rules: Rules, word: Settled) -> World:
    """The world after an owner has heard who has claimed the slot that it gave away."""
    number = word.member
    member = learn(world, number, world.members[number], word.revision)
    world = world._replace(transit=world.transit - {word})
    batch = member.batch
    if batch is None or word.revision <= batch.fence:
        return with_member(world, number, member)
    found = word.marker_batch == (batch.boot, batch.batch) or not rules.marker_settles_batch
    heard = Answer(
        batch, False, 0, word.revision, word.marker, (batch.boot, batch.batch) if found else word.marker_batch
    )
    unheard = frozenset(answer for answer in world.answers if answer.txn != batch)
    done = world._replace(answers=unheard)
    return _written(with_member(done, number, member), heard, number, member._replace(batch=None))


def _left(world: World, rules: Rules, answer: Answer, number: int, member: Member) -> World:
    revision = _applied(world, answer)
    record = answer.txn.record
    if not revision or record is None:
        return with_member(world, number, _refused(rules, answer, member._replace(holding=None)))
    gate = "closed" if rules.reads_end_before_target_is_told else "readable"
    fenced = with_member(world, number, member._replace(holding=Holding(revision, record, gate)))
    return fenced._replace(transit=fenced.transit | {Activate("abc".index(record.to), revision)})


def _settled(world: World, rules: Rules, answer: Answer, number: int, member: Member, *, undone: bool) -> World:
    """The end of a handover: at its target, or undone at its owner."""
    revision = _applied(world, answer)
    record = answer.txn.record
    gone = undone and (member.holding is None or member.holding.fence != answer.txn.fence)
    if not revision or record is None or gone or _outdated(rules, member, revision):
        lost = member._replace(holding=None) if undone and not gone else member
        return with_member(world, number, _refused(rules, answer, lost))
    ours = member._replace(view=max(member.view, revision), holding=Holding(revision, record, "open"))
    after = with_member(world, number, ours)
    check_opening(after, number, revision)
    return after


def _written(world: World, answer: Answer, number: int, member: Member) -> World:
    txn = answer.txn
    if answer.won or answer.marker_batch == (txn.boot, txn.batch):
        revision = answer.revision if answer.won else answer.marker
        memory, shown = list(member.memory), list(world.shown)
        for write in txn.writes:
            memory[write.session] = max(memory[write.session], revision)
            shown[write.session] = max(shown[write.session], revision)
        kept = with_member(world, number, member._replace(memory=tuple(memory), marker=revision))
        requests = frozenset(write.request for write in txn.writes)
        return acknowledge(kept._replace(shown=tuple(shown)), number, txn.fence, requests)
    member = member._replace(marker=answer.marker)
    if answer.owner != txn.fence:
        return with_member(world, number, learn(world, number, member, answer.owner))
    again = txn._replace(marker=answer.marker, batch=fresh_batch(world), copy=0)
    after = with_member(world, number, member._replace(batch=again))
    return after._replace(transit=after.transit | {again})
