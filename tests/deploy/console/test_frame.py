"""A frame of a pool: one active per slot, problems first with their commands, and what has changed since the last."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.console.pools import NOW, TRACE, a_pool, drained, failed_over, offline
from understudy.deploy.console.changes import changes
from understudy.deploy.console.frame import NO_LAG, Surroundings, frame_of
from understudy.deploy.console.marks import letters, marks_of
from understudy.deploy.console.measured import Measured
from understudy.deploy.inspect.sites import sites_view
from understudy.deploy.inspect.views import status_view, table_view
from understudy.statesync.etcd.client import EndpointStatus
from understudy.statesync.heartbeat.load_report import LoadReport
from understudy.statesync.pool.records import Intent, MemberState, Owner, Phase, SyncRecord
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import SiteSpec
from understudy.statesync.pool.spec_versions import Versions
from understudy.statesync.pool.state import At
from understudy.statesync.replication.sync_set import Process
from understudy.xds.control.load_view import member_load_view
from understudy.xds.membership.load_book import MemberLoad


def test_a_pool_at_rest_has_no_problem_and_says_so_in_a_sentence():
    frame = frame_of(a_pool(), 7, NOW)
    assert frame.overview["sentence"] == "All 8 slots are served; each has two copies or more; 3 of 3 members serve."
    assert (frame.overview["level"], frame.overview["problems"]) == (0, [])
    assert "loses no acknowledged write" in frame.overview["exposure"]


def test_the_rows_are_those_of_the_commands():
    state = a_pool()
    frame = frame_of(state, 7, NOW)
    for row in table_view(state)["slots"]:
        shown = frame.objects["slots"][str(row["slot"])]
        assert {name: row[name] for name in ("owner", "epoch", "phase", "order", "cause")}.items() <= shown.items()
    for row in status_view(state, revision=7)["members"]:
        assert row.items() <= frame.objects["members"][row["member"]].items()


def test_members_with_trouble_come_first_and_numbers_in_names_count():
    state = a_pool()
    record = state.members["cart-2"].record
    state.members["cart-2"] = At(replace(record, state=MemberState.DOWN, reason="its check fails"), 9)
    assert list(frame_of(state, 9, NOW).objects["members"]) == ["cart-2", "cart-1", "cart-10"]


@pytest.mark.parametrize(
    ("late", "lag", "patience"),
    [(0.0, "none", "300 ms"), (0.25, "up to 250 ms", "1.05 s"), (1.0, "up to 1 s", "2.3 s")],
)
def test_a_member_that_is_late_may_be_silent_for_longer(late, lag, patience):
    state = a_pool()
    state.members["cart-2"] = At(replace(state.members["cart-2"].record, stall=late), 9)
    row = frame_of(state, 9, NOW).objects["members"]["cart-2"]
    assert (row["lag"], row["patience"]) == (lag, patience)


def test_a_lost_member_has_no_lag_and_no_patience():
    state = a_pool()
    del state.members["cart-2"]
    row = frame_of(state, 9, NOW).objects["members"]["cart-2"]
    assert (row["state"], row["lag"], row["patience"]) == ("LOST", "", "")


@pytest.mark.parametrize(
    ("change", "level", "text", "command"),
    [
        (lambda state: state.owners.pop(3), 3, "1 slots have no owner yet", "understudy failovers --pool cart"),
        (lambda state: state.members.pop("cart-2"), 3, "owned by a member that is lost", "understudy failovers"),
        (
            lambda state: drained(state, "cart-1"),
            1,
            "cart-1 is out of service",
            "understudy undrain cart-1 --pool cart",
        ),
        (lambda state: offline(state, "east"), 1, "site east is offline", "understudy site online east --pool cart"),
        (lambda state: state.faults.update({state.keys.spec: "bad"}), 2, "", "understudy apply -f pool.yaml"),
    ],
)
def test_each_problem_has_its_level_and_the_command_that_ends_it(change, level, text, command):
    state = a_pool()
    change(state)
    overview = frame_of(state, 9, NOW).overview
    found = [one for one in overview["problems"] if text in one["text"] and one["command"].startswith(command)]
    assert found, overview["problems"]
    assert overview["level"] >= level
    assert overview["problems"][0]["level"] == {1: "notice", 2: "warning", 3: "alert"}[overview["level"]]


@pytest.mark.parametrize(("until", "end"), [(NOW + 60, "until 2027-01-15 08:01:00Z"), (0.0, "without a time limit")])
def test_a_site_that_is_offline_is_one_problem_that_says_until_when(until, end):
    state = a_pool()
    offline(state, "east", until)
    state.table = At(replace(state.table.record, offline=("east",)), 6)
    told = [one["text"] for one in frame_of(state, 9, NOW).overview["problems"] if "offline" in one["text"]]
    assert told == [f"site east is offline {end}: its members get no slots"]


def test_what_is_degraded_of_sites_is_a_problem_with_its_age_and_what_ends_it():
    state = a_pool()
    state.members["cart-2"] = At(replace(state.members["cart-2"].record, state=MemberState.DOWN, since=NOW - 9), 9)
    links = ({"what": "the link to site west is cut", "since": NOW - 20, "remedy": "mend the network"},)
    etcd = [EndpointStatus(f"etcd-{n}:2379", "" if n == 2 else "3.5.9", n == 0, 1, ()) for n in range(3)]
    frame = frame_of(state, 9, NOW, Surroundings(links=links, etcd=etcd))
    found = {one["text"]: (one["since"], one["command"]) for one in frame.overview["problems"]}
    assert found["no member of site west can serve"] == (NOW - 9, "start its members again")
    assert found["the link to site west is cut"] == (NOW - 20, "mend the network")
    no_answer = "etcd does not answer at etcd-2:2379: the next loss stops writes"
    assert found[no_answer] == (0.0, "start these members of etcd again")
    assert frame.objects["sites"]["west"]["state"] == "LOST"


def test_a_pool_on_one_site_has_no_problem_with_sites():
    state = a_pool()
    for name, at in state.members.items():
        state.members[name] = At(replace(at.record, site=""), at.revision)
    assert frame_of(state, 9, NOW).overview["problems"] == []


def test_what_status_warns_of_is_a_problem():
    state = a_pool()
    state.spec = At(PoolSpec(pool="cart", slots=8, copies=2, versions=Versions(new_sessions="v2")), 1)
    failing = replace(state.members["cart-2"].record, forecast="memory is full in 9 s", forecast_level="critical")
    state.members["cart-2"] = At(failing, 9)
    found = [
        one["text"] for one in frame_of(state, 9, NOW, Surroundings(warnings=("as reported",))).overview["problems"]
    ]
    assert any(text.startswith("new sessions are to begin on version v2") for text in found)
    assert any(text.startswith("cart-2 may fail soon: memory is full in 9 s") for text in found)
    assert "as reported" in found


def test_an_intent_that_has_ended_is_none():
    state = a_pool()
    drained(state, "cart-1", until=NOW - 1)
    offline(state, "east", until=NOW - 1)
    frame = frame_of(state, 9, NOW)
    assert frame.objects["members"]["cart-1"]["out"] == ""
    assert frame.objects["sites"]["east"]["state"] == "IN SERVICE"


def test_a_site_is_shown_as_site_status_shows_it():
    state = a_pool()
    spec = state.spec.record
    state.spec = At(spec.model_copy(update={"sites": {"east": SiteSpec(weight=2), "west": SiteSpec(weight=1)}}), 1)
    shown = frame_of(state, 9, NOW).objects["sites"]
    rows = {row["site"]: row for row in sites_view(state, revision=9, now=NOW)["sites"]}
    assert shown.keys() == rows.keys() == {"east", "west"}
    for site, row in rows.items():
        same = ("active", "copies", "grade", "grade_why")
        assert {name: shown[site][name] for name in same} == {name: row[name] for name in same}
        assert shown[site]["members"] == len(row["members"])
    assert shown["west"]["grade_why"] == "100 of 100: 1 of 1 members can serve"
    assert "no acknowledged write is lost" in shown["west"]["if_lost"]


@pytest.mark.parametrize(
    ("unsaved", "told"),
    [
        ([7, 1120, 9], "at most 9 replicas writes of the last 1120 ms, to at most 7 sessions"),
        ([7, 1120], "an unknown number of replicas writes of the last 1120 ms, to at most 7 sessions"),
        (None, "an unknown number of replicas writes of the last 1000 ms, to an unknown number of sessions"),
    ],
)
def test_a_site_says_by_the_reports_of_members_what_its_loss_may_cost(unsaved, told):
    state = a_pool()
    for slot, at in state.owners.items():
        process = Process(at.record.active, at.record.boot)
        state.sync_sets[slot] = At(SyncRecord(1, (process,), memory=True), 4)
    (member,) = (name for name, at in state.members.items() if at.record.site == "west")
    report = LoadReport(unsaved=unsaved, copy_lag={"east": (12, 3)} if unsaved else None)
    load = [member_load_view(member, MemberLoad(report, 1.0, 0.0, 0, 0))]
    shown = frame_of(state, 9, NOW, Surroundings(load=load)).objects["sites"]
    assert told in shown["west"]["if_lost"]
    assert "an unknown number of" in shown["east"]["if_lost"]
    assert (shown["west"]["lag"], shown["east"]["lag"]) == (
        "east at most 12 ms, 3 writes" if unsaved else NO_LAG,
        NO_LAG,
    )


def test_a_drill_that_runs_elsewhere_is_shown_until_its_drain_ends():
    state, ended = a_pool(), {"state": "done", "headline": "The last drill here has ended.", "now": ""}
    state.intents["cart-2"] = At(Intent("cart-2", NOW + 60, NOW, drill="anna"), 7)
    shown = frame_of(state, 9, NOW, Surroundings(drill=ended)).overview["drill"]
    assert (shown["state"], shown["headline"]) == (
        "running",
        "A drill is running elsewhere: drain of cart-2, started by anna.",
    )
    own = {"state": "running", "headline": "A drill is running: drain of cart-1.", "now": "Now: it begins."}
    assert frame_of(state, 9, NOW, Surroundings(drill=own)).overview["drill"] == own
    assert frame_of(state, 9, NOW + 61, Surroundings(drill=ended)).overview["drill"] == ended


def test_a_practice_that_runs_elsewhere_is_shown_until_its_site_is_back():
    state, ended = a_pool(), {"state": "done", "headline": "The last drill here has ended.", "now": ""}
    offline(state, "west")
    assert frame_of(state, 9, NOW, Surroundings(drill=ended)).overview["drill"] == ended, "an operator's own act"
    state.sites["west"] = At(Intent(site="west", until=NOW + 60, since=NOW, drill="anna"), 7)
    shown = frame_of(state, 9, NOW, Surroundings(drill=ended)).overview["drill"]
    assert shown["headline"] == "A drill is running elsewhere: site west offline, started by anna."
    assert frame_of(state, 9, NOW + 61, Surroundings(drill=ended)).overview["drill"] == ended


def test_a_member_out_of_service_has_its_end():
    state = a_pool()
    drained(state, "cart-1", until=NOW + 60)
    offline(state, "west")
    rows = frame_of(state, 9, NOW).objects["members"]
    assert (rows["cart-1"]["out"], rows["cart-1"]["until"]) == ("drained", NOW + 60)
    assert (rows["cart-2"]["out"], rows["cart-2"]["until"]) == ("site offline", 0.0)


def test_what_is_not_known_is_not_drawn_as_empty():
    state = a_pool()
    del state.owners[0]
    frame = frame_of(state, 9, NOW)
    assert (frame.objects["slots"]["0"]["mark"], frame.objects["slots"]["0"]["tone"]) == ("?", -1)
    assert frame.overview["traffic"] is None


def test_a_slot_with_one_copy_is_told():
    state = a_pool()
    for slot, at in state.owners.items():
        state.sync_sets[slot] = At(SyncRecord(1, (Process(at.record.active, at.record.boot),)), 4)
    frame = frame_of(state, 9, NOW)
    assert frame.objects["slots"]["0"]["copies"] == 1
    assert "8 slots have a single copy" in frame.overview["exposure"]


def test_an_envoy_that_rejects_its_configuration_is_an_alert():
    types = [{"type": "CDS", "sent": "2", "acked": "1", "state": "ERROR", "error": "no such filter"}]
    envoys = {"nodes": [{"node": "front-1", "control": "c", "state": "ERROR", "types": types}], "silent": {}}
    frame = frame_of(a_pool(), 9, NOW, Surroundings(envoys=envoys))
    assert "front-1 rejects CDS: no such filter" in frame.overview["problems"][0]["text"]
    assert frame.objects["envoys"]["front-1 c"]["types"] == types


def test_a_failover_says_how_long_it_took_or_that_this_is_not_known():
    state = a_pool()
    failed_over(state, "cart-1", "cart-2", (0, 3))
    assert frame_of(state, 9, NOW).objects["failovers"][TRACE]["took"] == "not known"
    told = frame_of(state, 9, NOW, Surroundings(measured={TRACE: Measured(69.0)}))
    assert told.objects["failovers"][TRACE]["took"] == "69 ms"
    assert told.overview["last"]["who"] == "cart-1 → cart-2"


owners = st.dictionaries(
    st.integers(0, 7),
    st.builds(Owner, st.sampled_from(["cart-1", "cart-2"]), st.just("x"), st.integers(1, 3), st.sampled_from(Phase)),
)


def apply(frame: dict, changed: dict) -> dict:
    """What a browser does with changes."""
    for kind, value in changed.items():
        if kind in ("pool", "revision", "overview"):
            frame[kind] = value
            continue
        for key, row in value.items():
            if row is None:
                del frame[kind][key]
            else:
                frame[kind][key] = row
    return frame


@given(owners, owners, st.booleans())
def test_a_frame_and_its_changes_make_the_next_frame(before, after, gone):
    states = [a_pool(), a_pool()]
    for state, found in zip(states, (before, after), strict=True):
        state.owners.update({slot: At(owner, 9) for slot, owner in found.items()})
    if gone:
        del states[1].members["cart-10"]
    first, second = (frame_of(state, 9, NOW) for state in states)
    told = changes(first, second)
    assert (told is None) == (first == second)
    assert apply(first.json(), told or {}) == second.json()
    for row in second.objects["slots"].values():
        assert row["owner"] is None or isinstance(row["owner"], str), "one active, never two"


def test_marks_differ_and_are_stable():
    marks = marks_of(f"cart-{number}" for number in range(1000))
    assert len({mark.text for mark in marks.values()}) == 1000
    assert (marks["cart-0"].text, marks["cart-26"].text, marks["cart-2"].text) == ("A", "AA", "C")
    assert [letters(at) for at in (25, 26, 701, 702)] == ["Z", "AA", "ZZ", "AAA"]
