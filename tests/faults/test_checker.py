"""The checker itself: histories that must fail, histories that must pass, and true registers, which always pass."""

import io
import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.faults.checker import check, check_session, needless_takeovers
from tests.faults.history import Attempt, FaultWindow, History, Kind, Op, Outcome, OwnerChange
from tests.harness.examples import examples


def op(kind, begin, end, *, outcome="ok", session="s", epoch=1, by="a", slot=0, status=200, repeated=False, **more):
    """An operation that one member answered."""
    answered = outcome in ("ok", "refused")
    attempt = Attempt(by, begin, end, status if answered else 0, "", slot, epoch, by, repeated=repeated)
    placed = attempt if answered else replace(attempt, epoch=0, served_by="")
    return Op(session, Kind(kind), begin, end, Outcome(outcome), attempts=(placed,), **more)


def put(value, begin, end, *, created=False, **more):
    return op("put", begin, end, sent=value, created=created, **more)


def read(value, begin, end, **more):
    return op("read", begin, end, seen=value, **more)


def cas(old, new, begin, end, **more):
    return op("cas", begin, end, expected=old, sent=new, **more)


def first(value="v1"):
    return put(value, 0, 1, created=True)


def owner(slot, active, epoch, revision, cause="first owner", boot=""):
    return OwnerChange(slot, active, boot or f"{active}-1", epoch, "stable", cause, revision, float(revision))


def promises(history, takeover="lease"):
    return {violation.promise for violation in check(history, takeover=takeover)}


MUST_FAIL = {
    "a stale read": [first(), put("v2", 2, 3), read("v1", 4, 5)],
    "a lost write": [first(), put("v2", 2, 3), read("v1", 4, 5), read("v1", 6, 7)],
    "a lost session": [first(), read(None, 2, 3)],
    "a write applied twice": [
        first(),
        put("v2", 2, 3),
        read("v2", 3.5, 3.6),
        put("v3", 4, 5),
        read("v3", 5.5, 6),
        read("v2", 7, 8),
    ],
    "an open write applied twice": [
        first(),
        put("v2", 2, 3, outcome="unknown"),
        read("v2", 4, 5),
        put("v3", 6, 7),
        read("v2", 8, 9),
    ],
    "a failed write that took effect": [first(), put("v2", 2, 3, outcome="failed"), read("v2", 4, 5)],
    "two readers that disagree on the order": [
        first(),
        put("v2", 2, 9),
        put("v3", 2, 9),
        read("v2", 3, 4),
        read("v3", 5, 6),
        read("v2", 7, 8),
    ],
    "a read of the future": [first(), read("v2", 1.5, 1.8), put("v2", 2, 3)],
    "two compare-and-sets from one value": [first(), cas("v1", "v2", 2, 5), cas("v1", "v3", 2, 5)],
    "a compare-and-set refused without reason": [first(), cas("v1", "v2", 2, 3, outcome="refused", status=412)],
    "a delete refused without reason": [first(), op("delete", 2, 3, outcome="refused", status=404)],
    "a deleted session that came back": [first(), op("delete", 2, 3, status=204), read("v1", 4, 5)],
    "a new session that was there already": [first(), put("v2", 2, 3, created=True)],
    "a lost field": [op("add", 0, 1, sent="f1"), op("add", 2, 3, sent="f2"), read(("f2",), 4, 5)],
    "a field added twice": [
        op("add", 0, 1, sent="f1"),
        op("remove", 2, 3, sent="f1"),
        read((), 4, 5),
        read(("f1",), 6, 7),
    ],
    "fields of a session that is gone": [op("add", 0, 1, sent="f1"), read(None, 2, 3)],
    "a patch refused without reason": [op("add", 0, 1, sent="f1", outcome="refused", status=404)],
    "readers that see fields in different orders": [
        op("add", 0, 9, sent="f1"),
        op("add", 0, 9, sent="f2"),
        read(("f1",), 1, 2),
        read(("f2",), 3, 4),
    ],
}

MUST_PASS = {
    "nothing": [],
    "one after the other": [first(), read("v1", 2, 3), cas("v1", "v2", 4, 5), read("v2", 6, 7)],
    "a read beside a write, before it": [first(), put("v2", 2, 5), read("v1", 3, 4), read("v2", 6, 7)],
    "a read beside a write, after it": [first(), put("v2", 2, 5), read("v2", 3, 4), read("v2", 6, 7)],
    "an open write that never takes effect": [first(), put("v2", 2, 3, outcome="unknown"), read("v1", 4, 5)],
    "an open write that takes effect late": [
        first(),
        put("v2", 2, 3, outcome="unknown"),
        read("v1", 4, 5),
        read("v2", 6, 7),
    ],
    "an open write behind a refusal": [
        first(),
        put("v2", 2, 3, outcome="unknown"),
        cas("v1", "v3", 4, 5, outcome="refused", status=412),
        put("v4", 6, 7),
    ],
    "an open compare-and-set of what an open write has written": [
        first(),
        cas("v1", "v2", 2, 3, outcome="unknown"),
        cas("v2", "v3", 4, 5, outcome="unknown"),
        read("v3", 6, 7),
    ],
    "an open delete behind a refusal": [
        first(),
        op("delete", 2, 3, outcome="unknown"),
        op("delete", 4, 5, outcome="refused", status=404),
        put("v4", 6, 7, created=True),
    ],
    "a failed write": [first(), put("v2", 2, 3, outcome="failed"), read("v1", 4, 5)],
    "a race of compare-and-sets with one winner": [
        first(),
        cas("v1", "v2", 2, 5),
        cas("v1", "v3", 2, 5, outcome="refused", status=412),
        read("v2", 6, 7),
    ],
    "deleted and made anew": [first(), op("delete", 2, 3, status=204), read(None, 4, 5), put("v2", 6, 7, created=True)],
    "fields": [
        op("add", 0, 3, sent="f1"),
        op("add", 1, 2, sent="f2"),
        read(("f2",), 2.5, 2.7),
        read(("f1", "f2"), 4, 5),
        op("remove", 6, 7, sent="f1"),
        op("add", 6, 7, sent="f3", outcome="unknown"),
        read(("f2",), 8, 9),
        read(("f2", "f3"), 10, 11),
    ],
}


@pytest.mark.parametrize("story", MUST_FAIL)
def test_it_finds(story):
    assert check_session("s", MUST_FAIL[story])


@pytest.mark.parametrize("story", MUST_PASS)
def test_it_accepts(story):
    assert check_session("s", MUST_PASS[story]) == []


def test_it_finds_two_members_in_one_epoch():
    history = History([put("v1", 0, 1, created=True, by="a"), put("v2", 2, 3, by="b")])
    assert promises(history) == {"two members in one epoch"}


def test_it_finds_an_epoch_that_goes_back():
    history = History([put("v1", 0, 1, created=True, epoch=2, by="b"), put("v2", 2, 3, epoch=1, by="a")])
    assert promises(history) == {"an epoch went back"}


def test_an_old_epoch_may_end_beside_a_new_one_and_repeats_do_not_count():
    beside = [put("v1", 0, 3, created=True, epoch=1), put("v2", 1, 2, epoch=2, by="b"), put("v3", 2.5, 4, epoch=3)]
    assert promises(History(beside)) == set()
    repeat = [put("v1", 0, 1, created=True, epoch=2, by="b"), put("v2", 2, 3, epoch=1, repeated=True)]
    assert promises(History(repeat)) == set()


@pytest.mark.parametrize(
    ("second", "promise"),
    [
        (owner(0, "b", 1, 7, "a lost"), "an owner record's epoch does not follow"),
        (owner(0, "b", 3, 7, "a lost"), "an owner record's epoch does not follow"),
        (owner(0, "a", 1, 7, "a was restarted", boot="a-2"), "an owner record's epoch does not follow"),
        (owner(0, "b", 2, 7, ""), "a slot moved without a cause"),
    ],
)
def test_it_finds_owner_records_that_break_the_rules(second, promise):
    assert promises(History(owners=[owner(0, "a", 1, 5), second])) == {promise}
    assert promises(History(owners=[owner(0, "a", 1, 5), owner(0, "b", 2, 7, "a lost")])) == set()


def test_it_finds_answers_that_the_api_does_not_have():
    assert promises(History([put("v1", 0, 1, created=True, status=500)])) == {"an answer that is not documented"}


def test_owner_reads_beside_a_fault_are_excused_with_fast_takeover_only():
    ops = [first(), put("v2", 2, 3, epoch=2, by="b"), read("v1", 4, 5, linearizable=False)]
    history = History(ops, [FaultWindow("pause", ("a",), 1.5, 3.5)])
    assert promises(history, "lease") == {"not linearizable"}
    assert promises(history, "fast") == set()
    assert promises(History(ops), "fast") == {"not linearizable"}
    assert promises(History([first(), put("v2", 2, 3), read("v1", 4, 5)], history.faults), "fast")


def test_a_takeover_from_a_member_without_a_fault_is_counted():
    owners = [owner(0, "a", 1, 5), owner(0, "b", 2, 7, "a lost: silent; silent")]
    assert needless_takeovers(History(owners=owners)).total() == 1
    assert not needless_takeovers(History(owners=owners, faults=[FaultWindow("pause", ("a",), 4, 6)]))


def test_a_history_survives_being_written_to_a_file(tmp_path):
    history = History(
        [*MUST_FAIL["a lost field"], *MUST_PASS["one after the other"]],
        [FaultWindow("pause", ("a",), 1.5, 3.5)],
        [owner(0, "a", 1, 5)],
    )
    history.dump(tmp_path / "history")
    assert History.load(io.StringIO((tmp_path / "history").read_text())) == history
    assert all(json.loads(line) for line in (tmp_path / "history").read_text().splitlines())


NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)


@st.composite
def register_histories(draw, most=25):
    """What concurrent clients see of a true register: each operation takes effect at one instant between its ends."""
    count = draw(st.integers(1, most))
    begins = draw(st.lists(st.integers(0, 60), min_size=count, max_size=count))
    begins = [begin + number / 1000 for number, begin in enumerate(begins)]
    instants = [begin + draw(st.integers(0, 12)) + 0.3 for begin in begins]
    state, ops = None, []
    values = (f"v{n}" for n in itertools.count())
    seen = ["nothing"]
    for begin, instant in sorted(zip(begins, instants, strict=True), key=lambda pair: pair[1]):
        end = instant + draw(st.integers(0, 6)) + 0.3
        kind = draw(st.sampled_from(["read", "put", "cas", "delete"]))
        fate = draw(st.sampled_from(["ok", "ok", "ok", "unknown, done", "unknown, not done", "failed"]))
        value, expected = next(values), draw(st.sampled_from(seen))
        effective = not fate.endswith("not done") and fate != "failed"
        fits = {"read": True, "put": True, "cas": state == expected, "delete": state is not None}[kind]
        shown = fate.partition(",")[0] if fits or fate != "ok" else "refused"
        match kind:
            case "read":
                shown = shown if shown == "ok" else "failed"
                ops.append(read(state, begin, end, outcome=shown))
                seen.append(state or "nothing")
            case "put":
                ops.append(put(value, begin, end, outcome=shown, created=state is None))
            case "cas":
                ops.append(cas(expected, value, begin, end, outcome=shown))
            case "delete":
                ops.append(op("delete", begin, end, outcome=shown))
        if effective and fits and kind != "read":
            state = None if kind == "delete" else value
    return sorted(ops, key=lambda entry: entry.begin)


@settings(max_examples=examples(150), deadline=None, phases=NO_SHRINKING)
@given(register_histories())
def test_whatever_a_true_register_does_is_accepted(ops):
    assert check_session("s", ops) == []


@st.composite
def field_histories(draw):
    """The same for a set of fields."""
    state, ops, now = frozenset(), [], 0.0
    for number in range(draw(st.integers(1, 30))):
        now += 1
        begin, end = now - draw(st.integers(0, 4)) - 0.5 + number / 1000, now + draw(st.integers(0, 4)) + 0.5
        kind = draw(st.sampled_from(["read", "add", "remove"]))
        fate = draw(st.sampled_from(["ok", "ok", "unknown, done", "unknown, not done", "failed"]))
        outcome, done = fate.partition(",")[0], fate in ("ok", "unknown, done")
        if kind == "read":
            ops.append(read(tuple(sorted(state)), begin, end))
        elif kind == "add":
            state = state | {f"f{number}"} if done else state
            ops.append(op("add", begin, end, sent=f"f{number}", outcome=outcome))
        else:
            field = f"f{draw(st.integers(0, 30))}"
            state = state - {field} if done else state
            ops.append(op("remove", begin, end, sent=field, outcome=outcome))
    return ops


@settings(max_examples=examples(150), deadline=None, phases=NO_SHRINKING)
@given(field_histories())
def test_whatever_a_true_set_does_is_accepted(ops):
    assert check_session("s", ops) == []


@settings(max_examples=examples(50), deadline=None, phases=NO_SHRINKING)
@given(register_histories(most=12), st.data())
def test_a_read_that_is_changed_to_a_value_nobody_wrote_is_found(ops, data):
    reads = [n for n, entry in enumerate(ops) if entry.kind is Kind.READ and entry.outcome is Outcome.OK]
    if reads:
        position = data.draw(st.sampled_from(reads))
        forged = [replace(entry, seen="forged") if n == position else entry for n, entry in enumerate(ops)]
        assert check_session("s", forged)
