"""The pure rules of the etcd client: what an error means, which endpoint to use, how watch responses are joined."""

import itertools

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.etcd.client import Event, Kv, NoSpace, OutcomeUnknown, Rejected, Unavailable
from understudy.statesync.etcd.errors import Verdict, error_of, judge
from understudy.statesync.etcd.key_range import KeyRange
from understudy.statesync.etcd.transport import Choice, choose
from understudy.statesync.etcd.watch import Cursor

Code = grpc.StatusCode
State = grpc.ChannelConnectivity


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (Code.UNAVAILABLE, "Socket closed"),
        (Code.UNAVAILABLE, "recvmsg:Connection reset by peer"),
        (Code.UNAVAILABLE, "keepalive watchdog timeout"),
        (Code.UNAVAILABLE, "etcdserver: request timed out"),
        (Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"),
        (Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"),
        (Code.UNAVAILABLE, "etcdserver: leader changed"),
        (Code.UNAVAILABLE, "etcdserver: server stopped"),
        (Code.FAILED_PRECONDITION, "etcdserver: not leader"),
        (Code.CANCELLED, "context canceled"),
        (Code.INTERNAL, "something nobody has seen"),
        (Code.UNKNOWN, ""),
        (Code.RESOURCE_EXHAUSTED, "Stream removed (CLIENT: Received message larger than max (99 vs. 64))"),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
    ],
)
def test_a_write_counts_as_unknown_unless_it_surely_was_not_carried_out(code: grpc.StatusCode, text: str) -> None:
    error = error_of(judge(code, text), "put", "there:2379", text, repeatable=False)

    assert isinstance(error, OutcomeUnknown)
    assert not isinstance(error, Unavailable)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (Code.UNAVAILABLE, "failed to connect to all addresses; last error: refused", Unavailable),
        (Code.UNAVAILABLE, "DNS resolution failed for nowhere:2379", Unavailable),
        (Code.UNAVAILABLE, "etcdserver: no leader", Unavailable),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Unavailable),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", Rejected),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Rejected),
        (Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Rejected),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", Rejected),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", Rejected),
    ],
)
def test_what_etcd_or_grpc_refuses_beforehand_surely_was_not_carried_out(
    code: grpc.StatusCode, text: str, kind: type[Exception]
) -> None:
    assert isinstance(error_of(judge(code, text), "put", "there:2379", text, repeatable=False), kind)


def test_the_same_code_with_a_foreign_text_is_not_trusted() -> None:
    assert judge(Code.FAILED_PRECONDITION, "a proxy's own opinion") is Verdict.UNKNOWN


def test_an_error_names_call_endpoint_and_cause() -> None:
    error = error_of(Verdict.NO_SPACE, "put", "there:2379", "database space exceeded", repeatable=False)

    assert isinstance(error, NoSpace)
    assert str(error) == "etcd put at there:2379: database space exceeded"


states = st.lists(st.tuples(st.sampled_from(list(State)), st.booleans()), min_size=1, max_size=5)


@given(states, st.integers(0, 4))
def test_the_endpoint_chosen_is_connected_and_trusted_ones_come_first(
    endpoints: list[tuple[grpc.ChannelConnectivity, bool]], start: int
) -> None:
    start %= len(endpoints)
    chosen = choose([state for state, _ in endpoints], [suspect for _, suspect in endpoints], start)

    trusted = {state for state, suspect in endpoints if not suspect}
    if isinstance(chosen, int):
        assert endpoints[chosen][0] is State.READY
        assert not endpoints[chosen][1] or not trusted & {State.READY, State.CONNECTING, State.IDLE}
    elif chosen is Choice.NONE:
        assert {state for state, _ in endpoints} <= {State.TRANSIENT_FAILURE, State.SHUTDOWN}


def test_the_current_endpoint_is_kept_while_it_is_connected() -> None:
    assert choose([State.READY, State.READY], [False, False], 1) == 1


def events_of(revisions: list[int]) -> list[Event]:
    return [
        Event("put", Kv(f"key-{number}", b"", revision, revision, 0))
        for revision, count in enumerate(revisions, start=5)
        for number in range(count)
    ]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.sets(st.integers(1, 23)), st.sets(st.integers(0, 8)))
def test_fragments_are_joined_so_that_no_revision_is_split(
    revisions: list[int], cuts: set[int], disconnects: set[int]
) -> None:
    events = events_of(revisions)
    cursor = Cursor(KeyRange("a", "b"), 5)
    batches: list[tuple[Event, ...]] = []
    attempts = [*sorted(disconnects), len(events)]

    for lost_after in attempts:
        cursor.restart()
        rest = [event for event in events if event.kv.mod_revision >= cursor.next_revision]
        edges = [0, *(cut for cut in sorted(cuts) if cut < len(rest)), len(rest)]
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            if number >= lost_after and lost_after < len(events):
                break
            if batch := cursor.feed(rest[begin:end], fragment=end < len(rest)):
                batches.append(batch)

    assert [event for batch in batches for event in batch] == events
    revisions_of = [{event.kv.mod_revision for event in batch} for batch in batches]
    assert sum(map(len, revisions_of)) == len(set().union(*revisions_of))


def test_events_that_were_seen_are_dropped_when_they_come_again() -> None:
    events = events_of([1, 2, 1])
    cursor = Cursor(KeyRange("a", "b"), 5)
    cursor.feed(events[:3], fragment=False)

    assert cursor.feed(events, fragment=False) == tuple(events[3:])
