"""What is explored: histories of one kind each, small enough for every run of the tests, and larger ones."""

from functools import partial

from tests.model.explorer import Explored, search
from tests.model.replication.moves import moves
from tests.model.replication.world import Bounds, Rules, start

LOST, SHOWN = "no acknowledged write is lost", "nothing that was shown vanishes"
KEPT, STALE, ALONE = "nothing is given up while somebody has it", "no stale read", "two have what is acknowledged"
BACK = "nothing comes back"

SMALL = {
    "a takeover": Bounds(writes=2, claims=1),
    "a takeover of three": Bounds(members=3, sync=3, writes=1, claims=1, deaths=1),
    "a death and a restart": Bounds(writes=1, claims=1, deaths=1, restarts=1),
    "a shrink under way": Bounds(writes=1, claims=1, shrinks=1, saves=1),
    "a learner joins": Bounds(members=3, writes=1, claims=1, growths=1),
    "memory is announced and all is saved": Bounds(writes=1, claims=1, memory=False, memory_changes=2, saves=1),
    "a loss": Bounds(writes=1, claims=1, deaths=2, restarts=1, saves=1),
    "a handover": Bounds(writes=2, claims=1, handovers=1),
    "reads without etcd": Bounds(writes=1, claims=1, questions=1, deaths=1),
    "reads at the active": Bounds(members=3, sync=3, reads=True),
    "a former active claims": Bounds(claims=2, deaths=1, saves=1, shrinks=1, reads=True),
}


LARGE = {
    "two claimants": Bounds(members=3, sync=3, claims=2),
    "two claimants and a death": Bounds(members=3, sync=3, claims=2, deaths=1),
    "a shrink and a growth": Bounds(members=3, shrinks=1, growths=1, saves=1),
    "a late frame of an old active": Bounds(members=3, sync=3, writes=2, claims=0, delayed=1, deposed=True),
    "a restart in the middle of a growth": Bounds(members=3, deaths=1, restarts=1, growths=1),
    "a loss after a takeover": Bounds(claims=2, deaths=2, restarts=1, saves=1),
    "a shrink, and all is saved": Bounds(shrinks=1, memory_changes=1, saves=2),
    "reads of three": Bounds(members=3, sync=3, questions=1),
    "reads, and etcd alone has the writes": Bounds(members=3, memory=False, questions=1, saves=1),
    "two writes of a deposed active": Bounds(members=3, sync=3, writes=2, deposed=True),
    "a stale reader": Bounds(members=3, sync=3, stale_reads=True),
}


MUTANTS = {
    "all_of_the_set_confirm": (Bounds(members=3, sync=3), LOST),
    "open_change_counts": (Bounds(members=3, growths=1), ALONE),
    "open_forgetting_stops": (Bounds(members=3, memory_changes=1), LOST),
    "memory_is_announced": (Bounds(members=3, memory=False), LOST),
    "two_have_it": (Bounds(sync=1, deaths=1), ALONE),
    "saved_is_what_all_have": (Bounds(saves=1), BACK),
    "readers_see_what_all_have": (Bounds(reads=True), SHOWN),
    "readers_see_what_is_saved": (Bounds(members=3, memory=False, reads=True), SHOWN),
    "old_epochs_are_refused": (Bounds(members=3, sync=3, writes=2, deposed=True), LOST),
    "logs_follow_epochs": (Bounds(members=3, sync=3, writes=3, deposed=True), LOST),
    "boots_are_identities": (Bounds(deaths=1, restarts=1), LOST),
    "only_the_set_claims": (Bounds(members=3), LOST),
    "claim_keeps_the_others": (Bounds(members=3, sync=3, claims=2, deaths=2), KEPT),
    "shrink_saves_first": (Bounds(shrinks=1), LOST),
    "forgetting_saves_first": (Bounds(members=3, memory_changes=1), LOST),
    "learner_has_what_is_acknowledged": (Bounds(members=3, growths=1), LOST),
    "learner_has_what_is_saved": (Bounds(sync=1, memory=False, growths=1, saves=1), BACK),
    "loss_proves_the_set_dead": (Bounds(members=3), KEPT),
    "loss_proves_former_actives_dead": (Bounds(members=3, claims=2, deaths=1), KEPT),
    "former_actives_bring_what_they_have": (Bounds(claims=2, deaths=1), KEPT),
    "copies_show_what_is_acknowledged": (Bounds(stale_reads=True), SHOWN),
    "promises_outlast_the_deadline": (Bounds(questions=1, saves=1), STALE),
    "every_member_promises": (Bounds(members=3, sync=3, questions=1), STALE),
    "promises_need_memory": (Bounds(members=3, memory=False, questions=1, saves=1), STALE),
}


def explored(rules: Rules, bounds: Bounds) -> Explored:
    """All states reachable under ``rules`` within ``bounds``, up to the first violation."""
    return search(start(bounds), partial(moves, rules=rules, bounds=bounds))
