"""What a pool's records say: roles by the true owners, rest and unrest, long traces in few lines."""

from dataclasses import replace

import pytest
from rich.console import Console

from understudy.deploy.common.console_style import Terminal
from understudy.deploy.common.layout import ControlAddresses, FrontAddresses, Layout, MemberAddresses
from understudy.deploy.inspect.converged import not_converged
from understudy.deploy.inspect.hashed_text import HashedText
from understudy.deploy.inspect.member_views import member_views, order_of
from understudy.deploy.inspect.sessions import FoundSession
from understudy.deploy.inspect.tables import change_text, explain_table, slot_table, status_table
from understudy.deploy.inspect.traces import condense
from understudy.deploy.inspect.views import explain_view, failovers_view, ranges, status_view, table_view
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import (
    FailoverRecord,
    Intent,
    Member,
    MemberState,
    Owner,
    Phase,
    SyncRecord,
    Table,
)
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_reader import parse_spec
from understudy.statesync.pool.state import At, PoolState
from understudy.statesync.replication.history import version_of
from understudy.statesync.replication.sync_set import Process
from understudy.statesync.sessions.session import Session
from understudy.telemetry.otlp.spans import StoredSpan
from understudy.telemetry.tracing.names import SERVICE_INSTANCE_ID
from understudy.xds.control.admin_views import failovers_view as told_by_control_servers


@pytest.fixture
def pool():
    """Four slots at rest over two members."""
    orders = (("a", "b"), ("b", "a")) * 2
    state = PoolState(PoolKeys("cart"))
    state.spec = At(PoolSpec(pool="cart", slots=4, copies=2), 1)
    state.table = At(Table(1, orders), 2)
    state.members = {name: At(Member(name, f"{name}1", "h:1", "h:2", MemberState.UP), 3) for name in ("a", "b")}
    state.owners = {slot: At(Owner(order[0], f"{order[0]}1", 1), 4) for slot, order in enumerate(orders)}
    return state


def own(pool, slot, **changes):
    pool.owners[slot] = At(replace(pool.owners[slot].record, **changes), 9)


def test_a_pool_at_rest_is_settled(pool):
    assert not_converged(pool, ["a", "b"]) == ""


@pytest.mark.parametrize(
    ("until", "end"),
    [
        (1_800_000_000.0, "until 2027-01-15 08:00:00Z or 'understudy site online east'"),
        (0.0, "until 'understudy site online east'"),
        (None, "by the slot table alone"),
    ],
)
@pytest.mark.parametrize("every", [False, True])
def test_a_site_that_is_offline_says_until_when_in_status_and_table(pool, capsys, until, end, every):
    pool.table = At(replace(pool.table.record, offline=("east",)), 5)
    if until is not None:
        pool.sites["east"] = At(Intent(until=until, since=1.0, site="east"), 6)
    said = f"site east is offline {end}: its members get no slots"
    assert said in status_view(pool, revision=9)["warnings"]
    Terminal(width=200).print(slot_table(table_view(pool), every=every))
    shown = capsys.readouterr().out
    assert (f"! {said}" in shown, "offline: east" in shown) == (until is not None, True)


def test_unrest_is_told(pool):
    assert not_converged(pool, ["a", "b", "c"]) == "not registered: c"
    own(pool, 0, phase=Phase.HANDOVER)
    assert not_converged(pool, ["a", "b"]) == "1 slots are moving"
    own(pool, 0, phase=Phase.STABLE, boot="before")
    assert not_converged(pool, ["a", "b"]) == "1 slots are moving"
    del pool.owners[0]
    assert not_converged(pool, ["a", "b"]) == "1 slots have no owner"
    pool.table = None
    assert "no slot table" in not_converged(pool, ["a", "b"])


def test_an_unfair_share_is_no_rest(pool):
    pool.table = At(Table(2, (("a", "b"),) * 4), 5)
    for slot in (1, 3):
        own(pool, slot, active="a", boot="a1")
    assert "less than their share" in not_converged(pool, ["a", "b"])


def test_an_owner_that_is_gone_is_unrest_not_a_fault(pool):
    del pool.members["b"]
    assert "not registered: b" in not_converged(pool, ["a", "b"])
    assert not_converged(pool, ["a"]) == "2 slots are moving"


def test_the_owner_comes_first_and_the_rest_as_in_the_table(pool):
    own(pool, 0, active="b")
    assert order_of(pool, 0) == ("b", "a")
    own(pool, 0, active="stranger")
    assert order_of(pool, 0) == ("stranger", "a", "b")


def test_status_names_a_member_whose_clock_is_wrong(pool):
    wrong = replace(pool.members["b"].record, clock="its clock is about 2 h ahead of the pool's, which counts here")
    pool.members["b"] = At(wrong, 9)
    assert f"b: {wrong.clock}" in status_view(pool, revision=9)["warnings"]


NO_LOSS = {"losses": 0, "last_loss": None}


def replicate(pool, *, memory=True, losses=0):
    """Give every slot a sync set of both members."""
    both = (Process("a", "a1"), Process("b", "b1"))
    pool.sync_sets = {slot: At(SyncRecord(1, both, memory=memory, losses=losses), 5) for slot in pool.owners}


def set_durability(pool, durability):
    pool.spec = At(parse_spec(f"pool: cart\nslots: 4\ncopies: 2\ndurability: {durability}", where="test"), 1)


def printed(view):
    return drawn(status_table(view))


def drawn(table):
    console = Console(width=250, no_color=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_status_says_how_many_slots_of_a_replicated_pool_have_one_copy(pool):
    set_durability(pool, "replicas")
    replicate(pool)
    view = status_view(pool, revision=9)
    assert view["replication"] == {"wanted": True, "slots": 4, "one_copy": 0, "memory": 4} | NO_LOSS
    assert "replication: all 4 slots have two copies or more\n" in printed(view)

    pool.sync_sets[0] = At(SyncRecord(1, (Process("a", "a1"),)), 6)
    own(pool, 1, epoch=2)  # its sync record is void now
    del pool.sync_sets[2]
    view = status_view(pool, revision=9)
    assert view["replication"] == {"wanted": True, "slots": 4, "one_copy": 3, "memory": 1} | NO_LOSS
    assert "replication: 3 of 4 slots have fewer than two copies, so their writes go through etcd\n" in printed(view)


def test_status_counts_the_losses_of_a_replicated_pool(pool):
    set_durability(pool, "replicas")
    replicate(pool, losses=2)
    view = status_view(pool, revision=9)
    assert view["replication"]["losses"] == 8
    assert "; slots that were restored from etcd after all their copies were lost: 8\n" in printed(view)


def lose(pool, slot, *, seconds, at):
    """The sync record of a slot says that it was claimed with a loss."""
    record = pool.sync_sets[slot].record
    pool.sync_sets[slot] = At(record.after_loss(seconds, at), 9)


def test_status_says_when_the_last_loss_was_and_what_may_be_missing(pool):
    set_durability(pool, "replicas")
    replicate(pool)
    lose(pool, 1, seconds=9, at=1000.0)
    lose(pool, 2, seconds=2, at=1_000_000.0)
    view = status_view(pool, revision=9)
    assert (view["replication"]["losses"], view["replication"]["last_loss"]) == (2, {"at": 1_000_000.0, "seconds": 2})
    shown = "lost: 2, last 1970-01-12 13:46:40Z: 'replicas' writes of up to 2 s before it may be missing\n"
    assert shown in printed(view)


@pytest.mark.parametrize(("epoch", "restored"), [(1, {"at": 100.0, "seconds": 2}), (2, None)])
def test_explain_says_that_a_session_was_restored_until_it_is_written(pool, epoch, restored):
    replicate(pool)
    pool.sync_sets[2] = At(replace(pool.sync_sets[2].record, epoch=2).after_loss(2, 100.0), 9)
    session = Session("text/plain", b"v", 10**12, epoch, version=version_of(epoch, 1))
    found = FoundSession("key", 2, session)
    view = explain_view(pool, found, "key", HashedText("a key", "key", ("key",)), 2, 200_000)
    assert view["restored"] == restored
    assert ("restored 1970-01-01 00:01:40Z, and not written since" in " ".join(drawn(explain_table(view)).split())) == (
        restored is not None
    )


def test_explain_says_that_a_session_may_have_been_lost_while_it_could_still_live(pool):
    replicate(pool)
    lose(pool, 2, seconds=2, at=100.0)
    hashed = HashedText("a key", "key", ("key",))
    assert explain_view(pool, None, "key", hashed, 2, 3_699_000)["restored"] == {"at": 100.0, "seconds": 2}
    assert explain_view(pool, None, "key", hashed, 2, 3_701_000)["restored"] is None


def test_status_tells_how_many_slots_of_a_sync_pool_have_one_copy(pool):
    view = status_view(pool, revision=9)
    assert view["replication"] == {"wanted": False, "slots": 4, "one_copy": 4, "memory": 0} | NO_LOSS
    assert "replication: 4 of 4 slots have fewer than two copies, so a takeover reads them from etcd\n" in printed(view)
    replicate(pool, memory=False)
    assert "replication: all 4 slots have two copies or more\n" in printed(status_view(pool, revision=9))


def test_status_shows_that_a_pool_which_no_longer_replicates_has_writes_in_memory(pool):
    set_durability(pool, "sync")
    replicate(pool)
    view = status_view(pool, revision=9)
    assert view["replication"]["memory"] == 4
    assert "; the newest writes of 4 slots may be in memory alone\n" in printed(view)


def test_status_says_nothing_about_replication_while_etcd_does_not_answer(pool):
    set_durability(pool, "replicas")
    known = {"source": "control-1", "age_seconds": 3.0, "etcd": "no answer", "unasked": []}
    view = status_view(pool, revision=9, last_known=known)
    assert view["replication"] is None
    assert "replication" not in printed(view)


def test_a_wanted_active_is_not_counted_before_it_is_one(pool):
    del pool.owners[0]
    assert [(view["member"], view["active"], view["standby"]) for view in member_views(pool)] == [
        ("a", 1, 2),
        ("b", 2, 2),
    ]


def test_a_session_that_nobody_made_is_explained_all_the_same(pool):
    view = explain_view(pool, None, "key", HashedText("a key", "key", ("key",)), 2, 0)
    assert (view["owner"], view["order"], view["session"]) == ("a", ["a", "b"], None)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"), ([2, 1, 0], "0-2")]
)
def test_numbers_are_written_as_ranges(numbers, text):
    assert ranges(numbers) == text


def span(number, name, who, start, end):
    return StoredSpan("t", f"{number}", "root", name, start, end, resource={SERVICE_INSTANCE_ID: who})


def test_a_long_trace_is_condensed_to_one_span_per_process_and_phase():
    spans = [span(number, "claim", f"cart-{number % 2}", number, number + 5) for number in range(100)]
    spans.append(span(100, "push", "control-1", 0, 9))
    short = condense(spans)
    assert [(s.instance, s.name, s.start_ns, s.end_ns) for s in short] == [
        ("cart-0 x50", "claim", 0, 103),
        ("cart-1 x50", "claim", 1, 104),
        ("control-1", "push", 0, 9),
    ]


def test_a_short_trace_stays_as_it_is():
    spans = [span(number, "claim", "cart-1", number, number + 5) for number in range(3)]
    assert condense(spans) == spans


def test_a_layout_survives_its_file():
    layout = Layout(
        "cart",
        7,
        ("http://127.0.0.1:1",),
        ("http://127.0.0.1:2",),
        (ControlAddresses("control-1", "127.0.0.1:3", "127.0.0.1:4"),),
        FrontAddresses("front-1", "127.0.0.1:5", "127.0.0.1:6"),
        (MemberAddresses("cart-1", "127.0.0.1:7", "127.0.0.1:8", "127.0.0.1:9", "127.0.0.1:10", "east"),),
    )
    assert Layout.decode(layout.encode()) == layout


def test_failovers_are_in_the_order_of_etcd_whatever_the_clocks_of_their_writers_say(pool):
    def changed(trace, to, *, started, revision):
        pool.failovers[f"{trace}/{to}/c"] = At(
            FailoverRecord(trace, to, "c", "c lost", False, (1,), (2,), started), revision
        )

    changed("first", "a", started=9000.0, revision=10)
    changed("second", "a", started=100.0, revision=11)
    changed("third", "b", started=5000.0, revision=12)
    changed("second", "b", started=50.0, revision=13)
    assert [row["trace"] for row in failovers_view(pool)["failovers"]] == ["second", "third", "first"]
    assert [row["trace"] for row in told_by_control_servers(pool)] == ["second", "third", "first"]


def test_failovers_say_which_of_them_had_a_loss_and_of_what(pool):
    for name, restored, seconds in (("a", (1,), 3), ("b", (2, 3), 2)):
        part = FailoverRecord("t", name, "c", "c lost", False, (1, 2, 3), (2, 2, 2), 1.0, 0, "", restored, seconds)
        pool.failovers[f"t/{name}/c"] = At(part, 9)
    (row,) = failovers_view(pool)["failovers"]
    assert (row["restored"], row["loss_seconds"]) == (3, 3)
    assert change_text(row) == "takeover c > a (3), b (3): c lost; 3 slots restored with a loss of up to 3 s"
    of_a_site = change_text({**row, "lost_site": "east", "site_trace": "5f3a"})
    assert of_a_site.startswith("site east lost (trace 5f3a): takeover c > a (3), b (3)")


def place_members(pool, **zones):
    """Members a, b, ... in these zones, each on a host of its own; they hold every slot in this order."""
    pool.members = {}
    for name, zone in zones.items():
        member = Member(name, "b", "h:1", "h:2", MemberState.UP, site="east", zone=zone, node=f"h-{name}")
        pool.members[name] = At(member, 1)


def test_explain_and_table_say_how_far_apart_the_copies_are_and_why_not_further(pool):
    pool.table = At(Table(1, (("a", "b"),) * 4), 1)
    pool.owners = {}
    place_members(pool, a="a", b="b")

    shown = drawn(explain_table(explain_view(pool, None, "key", HashedText("a key", "key", ("key",)), 2, 0)))
    assert "zone: all members are on site east" in shown
    assert "copies are apart by zone: all members are on site east" in drawn(slot_table(table_view(pool), every=False))


def test_status_warns_of_copies_in_one_zone_if_another_has_members(pool):
    pool.table = At(Table(1, (("a", "b"),) * 4), 1)
    pool.owners = {}
    place_members(pool, a="a", b="a", c="b")
    warned = status_view(pool, revision=1)["warnings"]
    assert any("4 slots, such as 0, have all their copies in one zone" in one for one in warned)

    place_members(pool, a="a", b="a")
    assert not any("copies" in one for one in status_view(pool, revision=1)["warnings"])


def test_explain_and_table_say_whom_the_spec_prefers_and_when_nobody_of_them_can_have_slots(pool):
    pool.table = At(Table(1, (("a", "b"),) * 4), 1)
    pool.owners = {}
    place_members(pool, a="a", b="b")
    assert table_view(pool)["prefers"] == ""
    pool.spec = At(PoolSpec(pool="cart", slots=4, prefer={"zones": ["a"], "members": ["gone"]}), 1)

    key = HashedText("a key", "key", ("key",))
    wanted = "the spec prefers a (zone a): no other member is active while one of them may have slots"
    assert explain_view(pool, None, "key", key, 2, 0)["prefers"] == wanted
    assert "the spec prefers a (zone a)" in drawn(explain_table(explain_view(pool, None, "key", key, 2, 0)))
    assert "the spec prefers a (zone a)" in drawn(slot_table(table_view(pool), every=True))

    place_members(pool, b="b")
    assert "since of those that it prefers there is none" in table_view(pool)["prefers"]
