"""What an active knows of its writes, and what it may do with them by the rules of ``sync_set``."""

from tests.model.replication.world import NOBODY, Member, Process, Rules, World, agreed
from understudy.statesync.replication import sync_set
from understudy.statesync.replication.sync_set import Progress, SyncSet


def needed(member: Member, rules: Rules) -> frozenset[Process]:
    """The processes that must have a write before it counts."""
    return sync_set.needed(agreed(member.view, rules), counted(member, rules))


def after_change(member: Member) -> SyncSet | None:
    """The set of the change that is under way."""
    change = member.change
    return change.sync.sync if change is not None and change.sync is not None else None


def counted(member: Member, rules: Rules) -> SyncSet | None:
    """The set of the change that is under way, if it counts."""
    return after_change(member) if rules.open_change_counts else None


def progress(world: World, member: Member, me: Process, rules: Rules) -> Progress:
    """How far the writes of the active are."""
    told = [place for place, write in enumerate(member.log, 1) if write in world.acknowledged | world.seen]
    acknowledged, sent = max([member.began, *told]), max(member.saving, member.saved)
    found = Progress(len(member.log), dict(member.heard), sent, member.saved, acknowledged)
    has = sync_set.held(agreed(member.view, rules), counted(member, rules), me, found)
    return found._replace(kept_back=1) if has < member.began and rules.saves_keep_what_is_newer else found


def held(world: World, member: Member, me: Process, rules: Rules) -> int:
    """How much of the log all have that must have it."""
    if not rules.all_of_the_set_confirm and needed(member, rules) != {me}:
        return min(max((has for _, has in member.heard), default=0), len(member.log))
    return sync_set.held(agreed(member.view, rules), counted(member, rules), me, progress(world, member, me, rules))


def savable(world: World, member: Member, me: Process, rules: Rules) -> int:
    """How much of the log may be saved."""
    if not rules.saved_is_what_all_have:
        return len(member.log)
    return sync_set.savable(agreed(member.view, rules), counted(member, rules), me, progress(world, member, me, rules))


def visible(world: World, member: Member, me: Process, rules: Rules) -> int:
    """How much of the log readers may see."""
    now, change, known = agreed(member.view, rules), counted(member, rules), progress(world, member, me, rules)
    if not rules.readers_see_what_is_saved:
        return sync_set.held(now, change, me, known)
    return sync_set.visible(now, change, me, known)


def readable(world: World, member: Member, me: Process, rules: Rules) -> bool:
    """Whether a reader may see the whole log."""
    return not rules.readers_see_what_all_have or visible(world, member, me, rules) == len(member.log)


def settled(world: World, member: Member, me: Process, rules: Rules) -> bool:
    """Whether readers may see all that the active had when it began."""
    return not rules.inherited_is_settled_first or visible(world, member, me, rules) >= member.began


def from_memory(member: Member, rules: Rules) -> bool:
    """Whether a write may be acknowledged before etcd has it."""
    now, change = agreed(member.view, rules), after_change(member)
    if not rules.open_forgetting_stops and change is not None:
        change = change._replace(memory=True)
    if not rules.memory_is_announced:
        now = now._replace(memory=True)
    return sync_set.acknowledges_from_memory(now, change) or (
        not rules.two_have_it and now.memory and needed(member, rules) == {member.view.owner.active}
    )


def takes_calls(member: Member) -> bool:
    """Whether its gate is open: the slot is not on its way to somebody else."""
    leaves = member.change is not None and member.change.kind == "leave"
    return bool(member.serving) and member.view.owner.to == NOBODY and not leaves


def stopped(member: Member) -> Member:
    """The member once it is not active any more."""
    return member._replace(
        serving=0, heard=(), asked=0, promises=frozenset(), saving=0, saved=0, began=0, reading=False
    )
