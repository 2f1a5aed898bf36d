"""What is explored: histories of one kind each, small enough for every run of the tests, and larger ones."""

from functools import partial

from tests.model.explorer import Explored, search
from tests.model.replication.moves import moves
from tests.model.replication.world import Bounds, Rules, check, start

SYNCED = "no sync write is lost"
LOST, SHOWN = "no acknowledged write is lost", "nothing that was shown vanishes"
KEPT, STALE, ALONE = "nothing is given up while somebody has it", "no stale read", "two have what is acknowledged"
BACK, TWICE, EPOCHS = "nothing comes back", "no write is applied twice", "epochs rise"
HAVE = "the set has what is acknowledged"

SMALL = {
    "a takeover": Bounds(writes=2),
    "a takeover of three": Bounds(members=3, sync=3, deaths=1),
    "a death and a restart": Bounds(deaths=1, restarts=1),
    "a shrink and a save under way": Bounds(shrinks=1, saves=1),
    "a learner joins": Bounds(members=3, growths=1),
    "a learner joins while a save is under way": Bounds(sync=1, memory=False, writes=2, growths=1, saves=1),
    "memory is announced and all is saved": Bounds(memory=False, memory_changes=2, saves=1),
    "a loss": Bounds(deaths=2, restarts=1, saves=1),
    "a handover": Bounds(writes=2, claims=0, handovers=1, answers=True),
    "a handover and a save under way": Bounds(claims=0, handovers=1, saves=1, answers=True),
    "a handover and a claim": Bounds(handovers=1, answers=True),
    "a handover whose answers never come": Bounds(claims=0, handovers=1, lost_answers=2, answers=True),
    "a handover, and reads from memory": Bounds(claims=0, handovers=1, looks=1, answers=True, lease=True),
    "a handover of a slot of an earlier release": Bounds(writes=2, claims=0, handovers=1, before="void", answers=True),
    "a claim whose answer never comes": Bounds(
        memory=False, saves=1, looks=1, lost_answers=1, answers=True, lease=True
    ),
    "a claim from etcd whose answer never comes": Bounds(
        sync=1, memory=False, saves=2, lost_answers=1, answers=True, lease=True
    ),
    "two claims, and reads from memory": Bounds(memory=False, saves=1, claims=2, answers=True, lease=True),
    "a slot given away, and reads from memory": Bounds(
        memory=False, saves=1, claims=0, gifts=1, looks=1, answers=True, lease=True
    ),
    "a slot given away and claimed at once": Bounds(memory=False, saves=1, gifts=1, answers=True, lease=True),
    "class sync: a takeover": Bounds(memory=False, writes=2, saves=2, answers=True),
    "class sync: a save that arrives twice": Bounds(memory=False, writes=2, saves=2, saves_again=1),
    "a request is repeated after a takeover": Bounds(members=3, sync=3, repeats=1, answers=True),
    "a request is repeated after a takeover from etcd": Bounds(
        memory=False, sync=1, writes=2, saves=1, repeats=1, answers=True
    ),
    "a request is repeated at a copy that joined later": Bounds(
        memory=False, sync=1, saves=2, growths=1, repeats=1, answers=True, before="alone"
    ),
    "a copy is dropped": Bounds(memory=False, sync=1, saves=1, growths=1, drops=1, answers=True),
    "reads without etcd": Bounds(questions=1, deaths=1),
    "reads at the active": Bounds(members=3, sync=3, reads=True),
    "an operator's word": Bounds(members=3, words=1),
    "a former active claims": Bounds(claims=2, deaths=1, saves=1, shrinks=1),
    "transactions that arrive twice": Bounds(sync=1, memory=False, growths=1, shrinks=1, saves=1, resends=2),
    "an active with what etcd has and others may lack": Bounds(members=3, sync=3, writes=2, saves=1, before="saved"),
    "a removal that saves": Bounds(members=3, sync=3, writes=2, shrinks=1, saves=1, before="inherited"),
    "a slot of an earlier release becomes replicated": Bounds(
        writes=2, growths=1, memory_changes=1, plain=True, before="void"
    ),
    "a void record": Bounds(writes=2, saves=1, deaths=1, before="void"),
    "one record is seen before the other": Bounds(shrinks=1, saves=1, torn=True),
}


LARGE = {
    "two claimants": Bounds(members=3, sync=3, claims=2),
    "two claimants and a death": Bounds(members=3, sync=3, claims=2, deaths=1),
    "a shrink and a growth": Bounds(members=3, shrinks=1, growths=1, saves=1),
    "a late frame of an old active": Bounds(members=3, sync=3, writes=2, claims=0, delayed=1, before="deposed"),
    "a restart in the middle of a growth": Bounds(members=3, deaths=1, restarts=1, growths=1),
    "a loss after a takeover": Bounds(claims=2, deaths=2, restarts=1, saves=1),
    "several former actives live": Bounds(members=3, sync=3, claims=3, deaths=1),
    "a former active claims, and reads": Bounds(claims=2, deaths=1, saves=1, shrinks=1, reads=True),
    "a shrink, and all is saved": Bounds(shrinks=1, memory_changes=1, saves=2),
    "reads of three": Bounds(members=3, sync=3, questions=1),
    "reads, and etcd alone has the writes": Bounds(members=3, memory=False, questions=1, saves=1),
    "two writes of a deposed active": Bounds(members=3, sync=3, writes=2, before="deposed"),
    "an operator's word, and a save": Bounds(members=3, saves=1, words=1),
    "a stale reader": Bounds(members=3, sync=3, stale_reads=True),
    "saves of three": Bounds(members=3, sync=3, saves=2),
    "a growth, and transactions that arrive twice": Bounds(members=3, growths=1, shrinks=1, resends=1),
    "three see one record before the other": Bounds(members=3, sync=3, saves=1, shrinks=1, torn=True, before="claimed"),
    "a slot of an earlier release, and three members": Bounds(
        members=3, writes=2, growths=1, memory_changes=1, saves=1, plain=True, before="void"
    ),
    "a removal that saves, and a claim": Bounds(members=3, sync=3, writes=2, shrinks=1, saves=2, before="inherited"),
    "a handover, a slot given away, and a lost answer": Bounds(
        memory=False, saves=1, claims=0, handovers=1, gifts=1, lost_answers=1, answers=True, lease=True
    ),
    "a handover, a claim, and a shrink": Bounds(
        memory=False, saves=1, shrinks=1, handovers=1, answers=True, lease=True
    ),
    "a copy is dropped, and processes restart": Bounds(
        memory=False, sync=1, saves=1, growths=1, drops=1, deaths=1, restarts=1, answers=True
    ),
    "two claims, looks and reads from memory": Bounds(
        memory=False, saves=1, claims=2, looks=1, answers=True, lease=True
    ),
    "a handover, a claim and a lost answer": Bounds(
        memory=False, saves=1, handovers=1, lost_answers=1, answers=True, lease=True
    ),
    "a slot given away, claimed, and a lost answer": Bounds(
        memory=False, saves=1, gifts=1, lost_answers=1, answers=True, lease=True
    ),
    "repeats after a takeover from etcd": Bounds(memory=False, sync=1, writes=2, saves=2, repeats=2, answers=True),
    "a repeat after a takeover of three and a death": Bounds(members=3, sync=3, repeats=1, deaths=1, answers=True),
}


MUTANTS = {
    "all_of_the_set_confirm": (Bounds(members=3, sync=3), LOST),
    "open_change_counts": (Bounds(members=3, growths=1), ALONE),
    "open_forgetting_stops": (Bounds(members=3, memory_changes=1), LOST),
    "memory_is_announced": (Bounds(members=3, memory=False), LOST),
    "two_have_it": (Bounds(sync=1, deaths=1), ALONE),
    "saved_is_what_all_have": (Bounds(saves=1), BACK),
    "saves_compare_the_owner": (Bounds(sync=1, memory=False, saves=1), BACK),
    "saves_keep_what_is_newer": (Bounds(members=3, sync=3, writes=2, saves=1, before="saved"), SYNCED),
    "one_batch_at_a_time": (
        Bounds(members=3, sync=3, writes=2, shrinks=1, saves=1, before="inherited"),
        SYNCED,
    ),
    "claims_compare_both": (Bounds(saves=1, shrinks=1), BACK),
    "plain_claims_compare_both": (Bounds(writes=2, growths=1, memory_changes=1, plain=True, before="void"), LOST),
    "set_changes_compare_both": (Bounds(sync=1, memory=False, growths=1, shrinks=1, saves=1, resends=1), BACK),
    "void_records_count_for_nothing": (Bounds(writes=2, before="void"), LOST),
    "actives_begin_with_both_records": (Bounds(members=3, sync=3, saves=1, torn=True, before="claimed"), BACK),
    "readers_see_what_all_have": (Bounds(reads=True), SHOWN),
    "readers_see_what_is_saved": (Bounds(members=3, memory=False, reads=True), SHOWN),
    "old_epochs_are_refused": (Bounds(members=3, sync=3, writes=2, before="ahead"), LOST),
    "logs_follow_epochs": (Bounds(members=3, sync=3, writes=3, before="ahead"), LOST),
    "boots_are_identities": (Bounds(deaths=1, restarts=1), LOST),
    "only_the_set_claims": (Bounds(members=3), LOST),
    "claim_keeps_the_others": (Bounds(members=3, sync=3, claims=2, deaths=2), KEPT),
    "shrink_saves_first": (Bounds(shrinks=1), LOST),
    "forgetting_saves_first": (Bounds(members=3, memory_changes=1), LOST),
    "learner_has_what_is_acknowledged": (Bounds(members=3, growths=1), LOST),
    "learner_has_what_is_saved": (Bounds(sync=1, memory=False, growths=1, saves=1), BACK),
    "loss_proves_the_set_dead": (Bounds(members=3), KEPT),
    "loss_proves_former_actives_dead": (Bounds(members=3, claims=2, deaths=1), KEPT),
    "copies_show_what_is_acknowledged": (Bounds(stale_reads=True), SHOWN),
    "promises_outlast_the_deadline": (Bounds(questions=1, saves=1), STALE),
    "every_member_promises": (Bounds(members=3, sync=3, before="promised"), STALE),
    "promises_need_memory": (Bounds(members=3, memory=False, saves=1, before="promised"), STALE),
    "claims_compare_the_owner": (Bounds(members=3, sync=3, writes=0, claims=2), EPOCHS),
    "claims_raise_the_epoch": (Bounds(writes=0), EPOCHS),
    "claims_from_etcd_read_after": (Bounds(sync=1, memory=False, saves=1, answers=True), BACK),
    "saves_compare_the_marker": (Bounds(sync=1, memory=False, writes=2, claims=0, saves=2, saves_again=1), SYNCED),
    "targets_are_in_the_set": (Bounds(sync=1, memory=False, saves=1, claims=0, handovers=1, answers=True), BACK),
    "receivers_of_old_slots_read_etcd": (Bounds(claims=0, handovers=1, answers=True, before="void"), LOST),
    "refused_undos_end_it": (
        Bounds(memory=False, claims=0, handovers=1, shrinks=1, saves=1, answers=True, lease=True),
        STALE,
    ),
    "late_answers_yield": (Bounds(memory=False, saves=1, claims=2, looks=1, answers=True, lease=True), STALE),
    "reclaims_alone_read_etcd": (Bounds(sync=1, memory=False, saves=1, lost_answers=1, answers=True), BACK),
    "reclaims_read_both_records": (Bounds(saves=1, lost_answers=1, torn=True, answers=True), LOST),
    "claims_outwait_readers": (Bounds(memory=False, saves=1, answers=True, lease=True), STALE),
    "reclaims_outwait_readers": (Bounds(memory=False, saves=1, lost_answers=1, answers=True, lease=True), STALE),
    "deadlines_count_from_sending": (Bounds(memory=False, saves=1, looks=1, answers=True, lease=True), STALE),
    "refusals_keep_the_deadline": (Bounds(memory=False, saves=1, answers=True, lease=True), STALE),
    "reads_end_before_the_target_is_told": (
        Bounds(memory=False, claims=0, handovers=1, shrinks=1, saves=1, answers=True, lease=True),
        STALE,
    ),
    "giving_ends_reads": (Bounds(memory=False, saves=1, claims=0, gifts=1, answers=True, lease=True), STALE),
    "given_is_taken_up_anew": (
        Bounds(memory=False, saves=1, claims=0, gifts=1, looks=1, answers=True, lease=True),
        STALE,
    ),
    "outcomes_go_with_writes": (Bounds(saves=1, repeats=1, answers=True), TWICE),
    "copies_bring_outcomes": (
        Bounds(sync=1, saves=2, growths=1, repeats=1, answers=True, before="alone"),
        TWICE,
    ),
    "claims_from_etcd_read_outcomes": (
        Bounds(memory=False, sync=1, saves=1, repeats=1, answers=True, before="alone"),
        TWICE,
    ),
    "inherited_is_settled_first": (Bounds(members=3, sync=3, repeats=1, answers=True), TWICE),
    "words_are_about_one_epoch": (Bounds(claims=2, words=1), KEPT),
    "copies_stay_while_they_count": (Bounds(sync=1, growths=1, drops=1, claims=0, answers=True), HAVE),
}


def explored(rules: Rules, bounds: Bounds, *, until: str = "") -> Explored:
    """All states reachable under ``rules`` within ``bounds``, up to the first violation, or the first step ``until``.

    Mutants break the protocol for somebody outside: a sync set that lacks a write is not enough, unless it is all that
    a dropped copy does.
    """
    strict = rules == Rules() or bounds.drops > 0
    return search(start(bounds), partial(moves, rules=rules, bounds=bounds), partial(check, strict=strict), until)


BUGS_OF_OTHERS = {
    "set_changes_compare_both": "KIP-903, a stale replica rejoins by a delayed addition",
    "boots_are_identities": "KIP-966, the last replica restarts empty and is believed",
    "only_the_set_claims": "cloudnative-pg 1688, a replica that has long been out is promoted",
    "old_epochs_are_refused": "KIP-570, a delayed command of an old term",
    "all_of_the_set_confirm": "KAFKA-15021, an index that counts replicas outside the set",
    "logs_follow_epochs": "KIP-101, a log is cut by number and not by epoch",
}
"""The mutants that are bugs of other products.

More of these bugs are tests in ``tests/statesync/replication/``; that of a shutdown that does not wait for copies
(infinispan 16316) is one in ``tests/replicas/``.
"""
