"""The promises of the classes of durability, on histories that must fail and on histories that must pass."""

import io
from dataclasses import replace

import pytest

from tests.faults.checker import check
from tests.faults.history import Attempt, FaultWindow, History, Kind, Op, Outcome, OwnerChange, ProcessSeen, SyncChange

A, B, C = ("a", "a1"), ("b", "b1"), ("c", "c1")
DIED = 100.0
OLD, YOUNG = 90.0, 99.5
"""Ends of writes: surely before the last checkpoint, and after it."""


def op(kind, end, *, epoch=1, got="", asked="", etag="", outcome="ok", status=200, session="s", **more):
    """An operation of 0.1 s that ended then."""
    answered = outcome == "ok"
    attempt = Attempt("a", end - 0.1, end, status if answered else 0, "", 0, epoch, "a", etag, durability=got)
    placed = attempt if answered else replace(attempt, epoch=0, served_by="")
    return Op(session, Kind(kind), end - 0.1, end, Outcome(outcome), attempts=(placed,), asked=asked, **more)


def put(value, end, got="sync", **more):
    return op("put", end, got=got, asked=more.pop("asked", got), sent=value, **more)


def read(value, end, **more):
    return op("read", end, seen=value, status=200 if value is not None else 404, **more)


def owner(epoch, process, revision):
    return OwnerChange(0, *process, epoch, "stable", "first owner", revision, float(revision))


def sync(epoch, members, revision, losses=0, memory=True, former=()):
    return SyncChange(0, epoch, tuple(members), tuple(former), memory, losses, revision, DIED + 5.0)


BEGUN = [ProcessSeen(member, boot, 1.0) for member, boot in (A, B, C)]
ENDS = [ProcessSeen(member, "", DIED) for member in ("a", "b")]
"""The ends of two processes; ``c`` lives on."""


def total_loss(*ops, processes=(*BEGUN, *ENDS), former=()):
    """``a`` and ``b`` die, who are the sync set, and ``c`` claims the slot from etcd, which counts a loss."""
    return History(
        ops=list(ops),
        owners=[owner(1, A, 10), owner(2, C, 20)],
        syncs=[sync(1, [A, B], 11, former=former), sync(2, [C], 21, losses=1, memory=False)],
        processes=list(processes),
    )


def promises(history, takeover="lease"):
    return {violation.promise for violation in check(history, takeover=takeover)}


FIRST = put("v1", 10.0, created=True)
GONE = "an acknowledged write is gone after a loss"

LIST = op("create", 10.0, got="sync", asked="sync")


def append(item, end, got, **more):
    return op("append", end, got=got, asked=got, sent=item, **more)


MUST_FAIL = {
    "an item appended by a sync write": (total_loss(LIST, append("i", YOUNG, "sync"), read((), 110, epoch=2)), GONE),
    "an item of an old replicas write": (total_loss(LIST, append("i", OLD, "replicas"), read((), 110, epoch=2)), GONE),
    "a list with an item of a sync write": (
        total_loss(LIST, append("i", YOUNG, "sync"), read(None, 110, epoch=2)),
        GONE,
    ),
    "an item that was appended after the list was deleted": (
        total_loss(
            LIST,
            op("delete", 20.0, got="sync", status=204),
            op("create", 30.0, got="sync"),
            append("i", OLD, "sync"),
            read((), 110, epoch=2),
        ),
        GONE,
    ),
    "a sync write": (total_loss(FIRST, put("v2", YOUNG), read("v1", 110, epoch=2)), GONE),
    "an old replicas write": (total_loss(FIRST, put("v2", OLD, "replicas"), read("v1", 110, epoch=2)), GONE),
    "a replicas write that was due long before saves failed": (
        replace(
            total_loss(FIRST, put("v2", 80.0, "replicas"), read("v1", 110, epoch=2)),
            faults=[FaultWindow("saves of all members fail", ("a", "b", "c"), 89.0, 99.0)],
        ),
        GONE,
    ),
    "a replicas write while saves failed, which went on long before the end": (
        replace(
            total_loss(FIRST, put("v2", OLD, "replicas"), read("v1", 110, epoch=2)),
            faults=[FaultWindow("saves of one member fail", ("a",), 80.0, 93.0)],
        ),
        GONE,
    ),
    "a session made by a sync write": (total_loss(FIRST, read(None, 110, epoch=2)), GONE),
    "a write after the loss": (
        total_loss(FIRST, put("v2", 110, "replicas", epoch=2), read("v1", 112, epoch=2)),
        GONE,
    ),
    "a field added by a sync write": (
        total_loss(op("add", YOUNG, got="sync", sent="f"), read((), 110, epoch=2)),
        GONE,
    ),
    "a field that a sync write removed comes back": (
        total_loss(
            op("add", 10, got="sync", sent="f"),
            op("remove", YOUNG, got="sync", sent="f"),
            read(("f",), 110, epoch=2),
        ),
        GONE,
    ),
    "what nobody wrote": (total_loss(FIRST, read("v9", 110, epoch=2)), "a value that nobody wrote"),
    "a lost write before the loss": (
        total_loss(FIRST, put("v2", 50.0, "replicas"), read("v1", 60.0), read("v1", 110, epoch=2)),
        "not linearizable",
    ),
    "a write of a session that is younger than the loss": (
        total_loss(put("v1", 110, epoch=2, created=True), put("v2", 111, epoch=2), read("v1", 112, epoch=2)),
        "not linearizable",
    ),
    "a replicas write without a loss": (
        History(ops=[FIRST, put("v2", 50.0, "replicas"), read("v1", 60.0)]),
        "not linearizable",
    ),
    "an async write that nothing disturbed": (
        History(ops=[FIRST, put("v2", 50.0, "async"), read("v1", 60.0)]),
        "not linearizable",
    ),
    "a loss while a standby lives": (
        total_loss(FIRST, processes=[*BEGUN, ENDS[0]]),
        "a loss while a process of the set lives",
    ),
    "a loss while a former active lives": (
        total_loss(FIRST, former=[("d", "d1")]),
        "a loss while a process of the set lives",
    ),
    "a weaker class than asked for": (
        History(ops=[put("v1", 10.0, "async", asked="replicas", created=True)]),
        "asked for replicas, answered as async",
    ),
    "no class": (
        History(ops=[put("v1", 10.0, "", asked="async", created=True)]),
        "asked for async, answered as none",
    ),
    "a version that goes back": (
        History(ops=[put("v1", 10.0, etag='"7.42"', created=True), put("v2", 11.0, etag='"7.9"')]),
        "a version went back",
    ),
    "two writes with one version": (
        History(ops=[put("v1", 10.0, etag='"7.42"', created=True), put("v2", 11.0, etag='"7.42"')]),
        "a version went back",
    ),
    "a read of an older version": (
        History(ops=[put("v1", 10.0, etag='"7.42"', created=True), read("v1", 11.0, etag='"6.90"')]),
        "a version went back",
    ),
}

MUST_PASS = {
    "an item of a young replicas write is lost": total_loss(
        LIST, append("i", YOUNG, "replicas"), read((), 110, epoch=2)
    ),
    "a list that somebody may have deleted": total_loss(
        LIST, append("i", 80.0, "sync"), op("delete", 85.0, outcome="unknown"), read(None, 110, epoch=2)
    ),
    "a young replicas write is lost": total_loss(FIRST, put("v2", YOUNG, "replicas"), read("v1", 110, epoch=2)),
    "it is not lost": total_loss(FIRST, put("v2", YOUNG, "replicas"), read("v2", 110, epoch=2)),
    "its session is lost with it": total_loss(put("v1", YOUNG, "replicas", created=True), read(None, 110, epoch=2)),
    "readers saw what is lost": total_loss(
        FIRST, put("v2", YOUNG, "replicas"), read("v2", 99.8), read("v1", 110, epoch=2)
    ),
    "a version goes back with a loss": total_loss(
        put("v1", 10.0, etag='"1.1"', created=True),
        put("v2", YOUNG, "replicas", etag='"1.2"'),
        read("v1", 110, epoch=2, etag='"1.1"'),
        put("v3", 111, "replicas", epoch=2, etag='"2.1"'),
    ),
    "an open write shows after a loss": total_loss(
        FIRST, put("v2", YOUNG, "", outcome="unknown"), read("v2", 110, epoch=2)
    ),
    "an open write takes effect late": total_loss(
        FIRST, put("v2", 50.0, "", outcome="unknown"), put("v3", 60.0), read("v2", 110, epoch=2)
    ),
    "etcd was away before all died": replace(
        total_loss(FIRST, put("v2", OLD, "replicas"), read("v1", 110, epoch=2)),
        faults=[FaultWindow("a long stop of etcd", (), 80.0, 99.0)],
    ),
    "saves failed before all died": replace(
        total_loss(FIRST, put("v2", OLD, "replicas"), read("v1", 110, epoch=2)),
        faults=[FaultWindow("saves of all members fail", ("a", "b", "c"), 89.0, 99.0)],
    ),
    "another boot of the dead is seen": total_loss(
        FIRST, processes=[*BEGUN, *(ProcessSeen(member, f"{member}2", DIED + 1) for member in ("a", "b"))]
    ),
    "an async write is lost beside a fault": History(
        ops=[FIRST, put("v2", 50.0, "async"), read("v1", 60.0)],
        faults=[FaultWindow("kill -9 of a sidecar", ("a",), 51.0, 52.0)],
    ),
    "a stronger class than asked for": History(ops=[put("v1", 10.0, "sync", asked="replicas", created=True)]),
    "the set shrinks and grows without a loss": replace(
        History(ops=[FIRST], owners=[owner(1, A, 10)], processes=BEGUN),
        syncs=[sync(1, [A, B], 11), sync(1, [A], 12), sync(1, [A, C], 13)],
    ),
}


@pytest.mark.parametrize("case", MUST_FAIL)
def test_the_checker_sees(case):
    history, promise = MUST_FAIL[case]
    assert promise in promises(history)


@pytest.mark.parametrize("case", MUST_PASS)
def test_the_checker_allows(case):
    assert promises(MUST_PASS[case]) == set()


def test_a_dumped_history_is_judged_alike(tmp_path):
    history = total_loss(FIRST, put("v2", YOUNG), read("v1", 110, epoch=2))
    file = tmp_path / "history.jsonl"
    history.dump(file)
    assert History.load(io.StringIO(file.read_text())) == history
