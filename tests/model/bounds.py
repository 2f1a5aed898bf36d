"""What is explored: histories of one kind each, small enough for every run of the tests, and larger ones."""

from tests.model.world import Bounds, Rules

FAST, LEASE = Rules(), Rules(lease=True)

SMALL = {
    "two takeovers with views as old as can be": (FAST, Bounds(writes=2, claims=2)),
    "three members": (FAST, Bounds(members=3, writes=1, claims=1, restarts=1)),
    "a crash in the middle of anything": (FAST, Bounds(writes=2, claims=1, restarts=1)),
    "a transaction sent twice": (FAST, Bounds(writes=2, claims=1, resends=1)),
    "two sessions in one commit": (FAST, Bounds(sessions=2, writes=2, claims=1, resends=1)),
    "a handover and a takeover at once": (FAST, Bounds(writes=1, claims=1, handovers=1)),
    "an answer that never comes": (LEASE, Bounds(writes=1, claims=1, looks=1, lost_answers=1)),
    "a handover whose answer never comes": (FAST, Bounds(writes=1, claims=0, handovers=1, lost_answers=1)),
    "reads from memory": (LEASE, Bounds(writes=2, claims=1, looks=1)),
    "reads from memory and a handover": (LEASE, Bounds(writes=1, claims=0, handovers=1, looks=1)),
    "a slot given away, and reads from memory": (LEASE, Bounds(writes=1, claims=0, looks=1, gifts=1)),
    "a slot given away and claimed at once": (LEASE, Bounds(writes=1, claims=1, gifts=1)),
    "writes under way when a slot is given away": (FAST, Bounds(writes=2, claims=0, gifts=1)),
}

LARGE = {
    "two crashes": (FAST, Bounds(writes=2, claims=2, restarts=1)),
    "three members, two takeovers": (FAST, Bounds(members=3, writes=1, claims=2)),
    "crash and resend": (FAST, Bounds(writes=2, claims=1, restarts=1, resends=1)),
    "two takeovers and two looks": (LEASE, Bounds(writes=1, claims=2, looks=2)),
    "two looks": (LEASE, Bounds(writes=2, claims=1, looks=2)),
    "handover, takeover and a lost answer": (LEASE, Bounds(writes=1, claims=1, handovers=1, looks=1, lost_answers=1)),
}

MUTANTS = {
    "write_compares_owner": (FAST, Bounds(writes=2, claims=1), "no acknowledged write is lost"),
    "write_compares_marker": (FAST, Bounds(writes=2, resends=1), "no acknowledged write is lost"),
    "claim_compares_owner": (FAST, Bounds(members=3, writes=0, claims=2), "epochs rise"),
    "claim_raises_epoch": (FAST, Bounds(claims=1), "epochs rise"),
    "claim_waits_for_watch": (FAST, Bounds(claims=1), "serving means caught up"),
    "claim_counts_marker": (FAST, Bounds(claims=1), "serving means caught up"),
    "claim_outwaits_readers": (LEASE, Bounds(claims=1), "no stale read"),
    "adopting_reads_etcd": (FAST, Bounds(claims=1, looks=1, lost_answers=1), "serving means caught up"),
    "adopting_outwaits_readers": (LEASE, Bounds(claims=1, looks=1, lost_answers=1), "no stale read"),
    "handover_fences": (FAST, Bounds(claims=0, handovers=1), "serving means caught up"),
    "refusal_teaches": (LEASE, Bounds(writes=1, claims=0, handovers=1), "no stale read"),
    "late_answers_yield": (LEASE, Bounds(writes=1, claims=2, looks=1), "no stale read"),
    "target_waits_for_watch": (FAST, Bounds(claims=0, handovers=1), "serving means caught up"),
    "reads_end_before_target_is_told": (LEASE, Bounds(writes=1, claims=0, handovers=1), "no stale read"),
    "deadline_counts_from_sending": (LEASE, Bounds(claims=1, looks=1), "no stale read"),
    "refusals_keep_the_deadline": (LEASE, Bounds(claims=1, looks=1), "no stale read"),
    "repeats_are_recognised": (FAST, Bounds(writes=1, claims=1), "no write is applied twice"),
    "repeats_keep_the_deadline": (LEASE, Bounds(writes=1, claims=2, looks=1), "no stale read"),
    "giving_ends_reads": (LEASE, Bounds(writes=1, claims=0, gifts=1), "no stale read"),
    "given_is_taken_up_anew": (LEASE, Bounds(writes=1, claims=0, looks=1, gifts=1), "no stale read"),
    "marker_settles_batch": (FAST, Bounds(writes=1, claims=0, gifts=1), "no acknowledged write is lost"),
}
