"""``site status``: what is in sync between sites, what the loss of a site would cost, and what is degraded."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.harness.recorded import answering
from understudy.deploy.common.console_style import Terminal
from understudy.deploy.inspect.fronts import share_at_home
from understudy.deploy.inspect.site_reports import CopyReport, read_lag_from, report_of
from understudy.deploy.inspect.sites import sites_table, sites_view
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.practice import Outcome, Practice, Practices
from understudy.statesync.pool.records import (
    ControlServer,
    Intent,
    Lost,
    Member,
    MemberState,
    Owner,
    Process,
    SyncRecord,
    Table,
)
from understudy.statesync.pool.site_copies import lagging_slots
from understudy.statesync.pool.site_records import DependencyDown, SiteSwitch
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import SiteSpec
from understudy.statesync.pool.state import At, PoolState

SITES = {"cart-1": "east", "cart-2": "west", "cart-3": "east", "cart-4": "west"}
ORDER = ("cart-1", "cart-3", "cart-2")
NOW = 10_000.0


def pool(sets: Sequence[Sequence[str]], *, memory: bool = False, copies: int = 3, **states: MemberState) -> PoolState:
    """A pool of two sites. cart-1 on east serves a slot for each entry of ``sets``, its sync set."""
    state = PoolState(PoolKeys("cart"))
    state.spec = At(PoolSpec(pool="cart", slots=len(sets), copies=copies), 1)
    state.table = At(Table(1, (ORDER,) * len(sets)), 2)
    for name, site in SITES.items():
        condition = states.get(name.replace("-", ""), MemberState.UP)
        member = Member(name, f"boot of {name}", "127.0.0.1:1", "127.0.0.1:2", condition, site=site)
        state.members[name] = At(member, 3)
    for slot, members in enumerate(sets):
        state.owners[slot] = At(Owner("cart-1", "boot of cart-1", 1), 4)
        record = SyncRecord(1, tuple(Process(name, f"boot of {name}") for name in members), memory=memory)
        state.sync_sets[slot] = At(record, 5)
    return state


def view_of(state: PoolState, **more: Any) -> dict[str, Any]:
    return dict(sites_view(state, revision=9, now=NOW, **more))


def degraded(state: PoolState, **more: Any) -> str:
    return "\n".join(one["what"] for one in view_of(state, **more)["degraded"])


def test_copies_on_both_sites_make_a_loss_of_one_cheap() -> None:
    view = view_of(pool([ORDER, ORDER]))
    east, west = view["sites"]
    assert (view["on_two_sites"], view["degraded"]) == (2, [])
    assert (east["active"], east["copies"], west["active"], west["copies"]) == (2, 2, 0, 2)
    assert (east["state"], west["state"]) == ("serving", "standing by")
    assert {key: east["if_lost"][key] for key in ("from_memory", "from_etcd", "lossy")} == {
        "from_memory": 2,
        "from_etcd": 0,
        "lossy": 0,
    }


def test_without_a_copy_elsewhere_etcd_has_what_is_acknowledged() -> None:
    view = view_of(pool([ORDER, ("cart-1", "cart-3")]))
    assert view["sites"][0]["if_lost"]["from_etcd"] == 1
    assert "1 slots have current copies on one site only (1)" in degraded(pool([ORDER, ("cart-1", "cart-3")]))


@pytest.mark.parametrize(
    ("unsaved", "sessions"), [({"cart-1": 5, "cart-3": 2}, 7), ({"cart-1": 5, "cart-3": None}, None), ({}, None)]
)
def test_writes_in_memory_of_one_site_alone_would_be_lost_and_are_counted(
    unsaved: dict[str, int | None], sessions: int | None
) -> None:
    reports = {name: CopyReport(count) if count is not None else None for name, count in unsaved.items()}
    loss = view_of(pool([("cart-1", "cart-3")], memory=True), reports=reports)["sites"][0]["if_lost"]
    assert (loss["lossy"], loss["sessions"], loss["bound_ms"]) == (1, sessions, 1000)


@pytest.mark.parametrize(("other", "writes"), [(CopyReport(0, writes=2), 11), (CopyReport(0), None), (None, None)])
def test_writes_that_would_be_lost_are_counted_if_all_members_of_the_site_count_them(
    other: CopyReport | None, writes: int | None
) -> None:
    reports = {"cart-1": CopyReport(5, writes=9), "cart-3": other, "cart-2": CopyReport(5, writes=70)}
    state = pool([("cart-1", "cart-3")], memory=True)
    assert view_of(state, reports=reports)["sites"][0]["if_lost"]["writes"] == writes
    assert view_of(pool([ORDER], memory=True), reports=reports)["sites"][0]["if_lost"]["writes"] == 0


def test_the_lag_of_each_pair_of_sites_is_the_most_that_a_member_reports(capsys: pytest.CaptureFixture[str]) -> None:
    reports = {
        "cart-1": CopyReport(0, copy_lag={"west": (12, 1)}),
        "cart-3": CopyReport(0, copy_lag={"west": (7, 9), "north": (80, 2)}),
        "cart-2": None,
    }
    view = view_of(pool([ORDER]), reports=reports)
    assert [row["lag"] for row in view["sites"]] == [
        {"north": {"ms": 80, "writes": 2}, "west": {"ms": 12, "writes": 9}},
        {},
    ]
    Terminal().print(sites_table(view, NOW))
    said = capsys.readouterr().out
    assert "behind site east in the last 10 s: north at most 80 ms, 2 writes, west at most 12 ms, 9 writes\n" in said
    assert "behind site west" not in said


def test_a_loss_goes_back_as_far_as_a_member_of_the_site_says() -> None:
    reports = {"cart-1": CopyReport(5, unsaved_ms=1120), "cart-3": CopyReport(0), "cart-2": CopyReport(9, 0.0, 5000)}
    view = view_of(pool([("cart-1", "cart-3")], memory=True), reports=reports)
    assert [row["if_lost"]["bound_ms"] for row in view["sites"]] == [1120, 0]


@pytest.mark.parametrize(
    ("more", "report"),
    [
        ({}, CopyReport(3)),
        ({"one_site": {"seconds": 4.0}}, CopyReport(3, 4.0)),
        ({"unsaved_sessions_most": 8, "unsaved_ms_most": 1120}, CopyReport(8, 0.0, 1120)),
        ({"unsaved_writes_most": 9}, CopyReport(3, writes=9)),
        ({"copy_lag": {"west": {"ms": 12, "writes": 4}}}, CopyReport(3, copy_lag={"west": (12, 4)})),
    ],
)
def test_a_member_of_an_earlier_release_says_only_what_etcd_lacks_now(more: dict[str, Any], report: CopyReport) -> None:
    assert report_of({"unsaved_sessions": 3, **more}) == report


def test_a_process_that_has_started_anew_has_no_copy() -> None:
    state = pool([ORDER])
    state.members["cart-2"] = At(
        Member("cart-2", "another boot", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP, site="west"), 6
    )
    assert view_of(state)["on_two_sites"] == 0


def test_a_site_that_is_offline_says_since_when_and_until_when_and_how_it_comes_back() -> None:
    state = pool([ORDER])
    state.sites["west"] = At(Intent(until=NOW + 60, since=NOW - 600, site="west"), 7)
    view = view_of(state)
    west = view["sites"][1]
    assert (west["state"], west["since"], west["until"]) == ("offline", NOW - 600, NOW + 60)
    assert view["degraded"] == [
        {
            "what": "site west is offline until 1970-01-01 02:47:40Z",
            "since": NOW - 600,
            "remedy": "understudy site online west",
        }
    ]
    state.sites["west"] = At(Intent(until=NOW - 1, since=NOW - 600, site="west"), 8)
    assert view_of(state)["degraded"] == []


def test_members_that_cannot_serve_are_named_and_a_site_of_such_members_is_lost() -> None:
    assert "site west lacks members: cart-4 DOWN" in degraded(pool([ORDER], cart4=MemberState.DOWN))
    both = pool([ORDER], cart2=MemberState.DOWN, cart4=MemberState.DOWN)
    assert "no member of site west can serve" in degraded(both)
    assert view_of(both)["sites"][0]["if_lost"]["survivors"] is False


def test_copies_are_late_only_where_the_table_wants_them_on_two_sites() -> None:
    alone = pool([("cart-1", "cart-3")])
    assert lagging_slots(alone) == [0]
    assert lagging_slots(alone, {"west"}) == []
    alone.table = At(Table(1, (("cart-1", "cart-3"),)), 2)
    assert lagging_slots(alone) == []
    assert "copies: 2 does not put copies on two sites" in degraded(pool([("cart-1", "cart-3")], copies=2))


def test_slots_on_one_site_have_the_age_that_members_report() -> None:
    reports = {"cart-1": CopyReport(0, 190.0), "cart-2": CopyReport(0, 20.0), "cart-3": None}
    view = view_of(pool([("cart-1", "cart-3")]), reports=reports)
    assert [(one["what"], one["since"]) for one in view["degraded"]] == [
        ("1 slots have current copies on one site only (0)", NOW - 190.0)
    ]


@pytest.mark.parametrize(
    ("answering", "members", "said"),
    [(3, 3, ""), (2, 3, "the next loss stops writes"), (1, 3, "writes have stopped"), (4, 5, "writes go on")],
)
def test_a_silent_member_of_etcd_is_told_with_what_it_means(answering: int, members: int, said: str) -> None:
    etcd = [
        EndpointStatus(f"etcd-{number}:2379", "3.5.9" if number < answering else "", number == 0, 1, ())
        for number in range(members)
    ]
    assert degraded(pool([ORDER]), etcd=etcd).endswith(said)
    assert bool(degraded(pool([ORDER]), etcd=etcd)) == bool(said)


def test_the_table_says_what_a_loss_costs_and_each_problem_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    state = pool([ORDER, ("cart-1", "cart-3")], memory=True)
    state.sites["west"] = At(Intent(since=NOW - 7500, site="west"), 7)
    reports = {"cart-1": CopyReport(3), "cart-3": CopyReport(0)}
    Terminal().print(sites_table(view_of(state, reports=reports), NOW))
    said = capsys.readouterr().out
    assert "1 of 2 slots have current copies on two sites or more" in said
    assert "1 slots go on from memory elsewhere" in said
    assert "1 slots may lose an unknown number of replicas writes of the last 1000 ms" in said
    assert "to at most 3 sessions, by the last 10 s" in said
    assert "no sync write is lost" in said
    assert "! site west is offline without a time limit, for 2 h 5 min so far: understudy site online west" in said


def test_the_share_of_requests_at_home_is_that_of_all_control_servers(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [{"window_seconds": 300.0, "sites": {"east": {"at_home": 998, "away": 1}}}, "no answer", {"fronts": []}]
    shares = share_at_home([*answers, answers[0]])
    assert shares == {"east": {"at_home": 1996, "away": 2, "window_seconds": 300.0}}
    Terminal().print(sites_table(view_of(pool([ORDER]), shares=shares), NOW))
    said = " ".join(capsys.readouterr().out.split())
    assert "front Envoys of site east: 99.8 % of 1998 requests with a session key went to its own members" in said


@pytest.mark.parametrize(
    ("recovery", "remedy"), [("keep_current", "site offline east --for 2m"), ("prefer_site", "stable for 30 s")]
)
def test_a_site_that_is_back_without_slots_is_told_with_what_ends_that(recovery: Any, remedy: str) -> None:
    state = pool([ORDER])
    sites = {"east": SiteSpec(weight=0), "west": SiteSpec(weight=100)}
    state.spec = At(PoolSpec(pool="cart", slots=1, recovery=recovery, sites=sites), 1)
    state.table = At(Table(1, (ORDER,), resting={"west": 100}), 2)

    (told,) = view_of(state)["degraded"]

    assert told["what"] == "site west is back, and has no slots after it was lost"
    assert remedy in told["remedy"]


@pytest.mark.parametrize(
    ("weight", "remedy"),
    [
        (50, "it gets slots from 1970-01-01 03:00:40Z on, or now by: understudy site online west"),
        (0, "understudy site online west"),
    ],
)
def test_a_site_that_rests_after_two_losses_is_told_with_until_when_and_what_ends_it(weight: int, remedy: str) -> None:
    state = pool([ORDER])
    sites = {"east": SiteSpec(weight=weight), "west": SiteSpec(weight=50)}
    state.spec = At(PoolSpec(pool="cart", slots=1, sites=sites), 1)
    table = Table(1, (ORDER,), resting={"west": 50}, returned={"west": 10_540.0})
    state.table = At(table, 2)

    (told,) = [one for one in sites_view(state, revision=7, now=10_839.0)["degraded"] if "rests" in one["what"]]
    why = "it was lost again within 300 s after it had its slots back"
    assert told["what"] == f"site west is back, and rests since {why}"
    assert told["remedy"] == remedy
    assert not [one for one in sites_view(state, revision=7, now=10_840.0)["degraded"] if "rests" in one["what"]]


def test_grades_and_the_last_switch_are_told_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    state = pool([ORDER], cart4=MemberState.DOWN)
    sites = {"east": SiteSpec(weight=100, members=4, needs=("database",)), "west": SiteSpec(weight=0)}
    state.spec = At(PoolSpec(pool="cart", slots=1, sites=sites), 1)
    lost = {"cart-3": Lost("boot of cart-3", "killed", "", NOW)}
    switch = SiteSwitch(("west",), NOW - 100, "east has grade 0, west has grade 100")
    state.table = At(Table(1, (ORDER,), lost, resting={"east": 100}, switch=switch), 2)
    assert [row["grade"] for row in view_of(state)["sites"]] == [25, 50]

    state.dependencies["east", "database"] = At(DependencyDown(NOW - 300, "no replica"), 9)
    view = view_of(state)
    assert view["switch"] == {"to": ["west"], "at": NOW - 100, "why": switch.why, "gap": 60, "frozen_for": 200.0}
    Terminal().print(sites_table(view, NOW))
    said = " ".join(capsys.readouterr().out.split())
    assert "grade of site east: 0 of 100: 1 of 4 members can serve (not cart-3); database is down" in said
    assert "grade of site west: 50 of 100: 1 of 2 members can serve (not cart-4)" in said
    assert (
        f"west serves for 1 min ({switch.why}); grades switch no sooner than in 200 s, from a difference of 60" in said
    )
    assert "! database of site east is down (no replica), for 5 min so far: understudy site dependency east" in said
    assert "! site east stands by since another site has a better grade, for 1 min so far: it serves again" in said


def test_without_sites_in_the_spec_no_grade_is_shown() -> None:
    view = view_of(pool([ORDER]))
    assert view["switch"] is None
    assert {row["grade"] for row in view["sites"]} == {None}


def test_a_site_that_the_pool_leaves_with_its_group_names_the_pool_to_look_at() -> None:
    state = pool([ORDER])
    assert state.table is not None
    assert state.spec is not None
    state.spec = At(state.spec.record.model_copy(update={"group": "shop"}), 1)
    state.table = At(replace(state.table.record, with_group={"west": "stock"}), 2)
    (one,) = [one for one in view_of(state)["degraded"] if "group" in one["what"]]
    assert one["what"] == "site west has no slots since pool stock of group shop has none there"
    assert one["remedy"] == "understudy site status --pool stock"


def test_a_cut_link_is_named_with_its_age() -> None:
    members = [
        {"member": "cart-1", "site": "east", "through_etcd_for": None},
        {"member": "cart-2", "site": "west", "through_etcd_for": 3.0},
        {"member": "cart-4", "site": "west", "through_etcd_for": 7.5},
    ]
    controls = {"control-1": {"members": members}, "control-2": "it does not answer", "control-3": {}}
    (one,) = view_of(pool([ORDER, ORDER]), controls=controls)["degraded"]
    assert one["what"].startswith(
        "the link to site west is cut: control server control-1 reaches cart-2, cart-4 through"
    )
    assert one["since"] == NOW - 7.5


def since_of(state: PoolState, what: str, **more: Any) -> float | None:
    """Since when the one row about ``what`` is so."""
    (one,) = [one for one in view_of(state, **more)["degraded"] if what in one["what"]]
    return None if one["since"] is None else float(one["since"])


def at_since(state: PoolState, **ages: float) -> None:
    """Members have been in their states for so many seconds."""
    for name, age in ages.items():
        member = name.replace("cart", "cart-")
        state.members[member] = At(replace(state.members[member].record, since=NOW - age), 9)


def test_members_that_are_missing_say_for_how_long_and_a_lost_site_since_its_last_one() -> None:
    one = pool([ORDER], cart4=MemberState.DOWN)
    at_since(one, cart4=70.0)
    assert since_of(one, "site west lacks members: cart-4 DOWN") == NOW - 70
    both = pool([ORDER], cart2=MemberState.DOWN, cart4=MemberState.DOWN)
    at_since(both, cart2=20.0, cart4=70.0)
    assert since_of(both, "no member of site west can serve") == NOW - 20
    assert since_of(pool([ORDER], cart4=MemberState.DOWN), "site west lacks members") is None


def test_a_member_that_was_found_dead_is_missing_although_its_record_stands() -> None:
    state = pool([ORDER])
    state.table = At(Table(1, (ORDER,), {"cart-4": Lost("boot of cart-4", "killed", "", NOW - 3)}), 2)
    assert since_of(state, "site west lacks members: cart-4 LOST") == NOW - 3
    state.table = At(Table(1, (ORDER,), {"cart-4": Lost("another boot", "killed", "", NOW - 3)}), 2)
    assert view_of(state)["degraded"] == []


def test_drained_members_come_back_by_undrain() -> None:
    state = pool([ORDER], cart4=MemberState.DRAINING)
    state.intents["cart-4"] = At(Intent("cart-4", since=NOW - 5), 7)
    assert [one["remedy"] for one in view_of(state)["degraded"]] == ["understudy undrain cart-4"]


def test_a_site_of_the_spec_without_a_member_is_lost() -> None:
    state = pool([ORDER])
    sites = {"east": SiteSpec(weight=1), "west": SiteSpec(weight=1), "north": SiteSpec(weight=1)}
    state.spec = At(PoolSpec(pool="cart", slots=1, copies=3, sites=sites), 1)
    assert [(row["site"], row["state"]) for row in view_of(state)["sites"]][1] == ("north", "lost")
    assert since_of(state, "no member of site north can serve") is None


@pytest.mark.parametrize(("why", "since"), [("", NOW - 40), ("east has grade 0", NOW - 100)])
def test_a_site_that_rests_says_since_when(why: str, since: float) -> None:
    state = pool([ORDER])
    sites = {"east": SiteSpec(weight=0), "west": SiteSpec(weight=100)}
    state.spec = At(PoolSpec(pool="cart", slots=1, sites=sites), 1)
    switch = SiteSwitch(("east",), NOW - 100, why)
    state.table = At(Table(1, (ORDER,), resting={"west": 100}, switch=switch), 2)
    at_since(state, cart2=40.0, cart4=30.0)
    assert since_of(state, "site west") == since


def test_a_practice_is_overdue_since_its_time_was_over() -> None:
    state = pool([ORDER])
    runs = (Practice("east", 1000.0, 60.0, Outcome.SUCCEEDED), Practice("east", 5000.0, 60.0, Outcome.INTERRUPTED))
    state.practices = At(Practices(runs, 600.0), 3)
    assert since_of(state, "no switch of sites was practised") == 1600.0


async def test_the_lag_of_a_site_is_asked_of_control_servers() -> None:
    state = pool([ORDER])
    rows = [
        {"member": name, "age_seconds": 1.0, "unsaved": [0, 0, 0], "copy_lag": {"west": [ms, 1]}}
        for name, ms in (("cart-1", 12), ("cart-3", 15), ("cart-2", 99))
    ]
    with answering({"/v1/load": {"members": rows, "slots": []}}) as (url, _):
        state.controls["control-1"] = At(ControlServer("control-1", "h:3", url.removeprefix("http://")), 1)
        assert await read_lag_from(state, "east") == {"west": {"ms": 15, "writes": 1}}
    state.controls.clear()
    assert await read_lag_from(state, "east") == {}
