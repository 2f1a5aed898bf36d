"""What ``status`` shows when etcd does not tell all: etcd is silent, the spec is garbage, a member is cut off."""

import io
import json
import re
from dataclasses import replace

import pytest

from tests.harness.recorded import answering
from tests.harness.waiting import free_port
from understudy.deploy.common.console_style import Terminal
from understudy.deploy.common.layout import ControlAddresses, FrontAddresses, Layout, MemberAddresses
from understudy.deploy.inspect.controls import ask_controls
from understudy.deploy.inspect.last_known import LastKnown, WithoutEtcd, read_last_known, stopped_without_etcd
from understudy.deploy.inspect.member_views import MemberReport, heard_by, member_views
from understudy.deploy.inspect.sites import sites_view
from understudy.deploy.inspect.tables import status_table
from understudy.statesync.etcd.informer import InformerBatch
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import (
    NO_ETCD,
    ControlServer,
    FailoverRecord,
    Intent,
    Lost,
    Member,
    MemberState,
    Owner,
    Table,
)
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import At, PoolState
from understudy.xds.control.last_read import heartbeats_view, records_text
from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.member_health import SECOND

KEYS = PoolKeys("cart")


def pool() -> PoolState:
    """Four slots, two members; a control server; one record of every other kind."""
    state = PoolState(KEYS)
    state.spec = At(PoolSpec(pool="cart", slots=4, copies=2), 1)
    state.table = At(Table(3, (("a", "b"), ("b", "a")) * 2, {"c": Lost("c1", "refused", "", 5.0)}), 2)
    state.leader = At("control-1", 3)
    state.members = {name: At(Member(name, f"{name}1", "h:1", "h:2", MemberState.UP), 4) for name in ("a", "b")}
    state.owners = {slot: At(Owner("ab"[slot % 2], f"{'ab'[slot % 2]}1", 1), 5) for slot in range(4)}
    state.controls = {"control-1": At(ControlServer("control-1", "h:3", "h:4"), 6)}
    state.failovers = {"ab/a/c": At(FailoverRecord("ab", "a", "c", "c lost", False, (1,), (2,), 1.0), 7)}
    state.intents, state.sites = {"a": At(Intent("a"), 8)}, {"east": At(Intent(site="east"), 9)}
    return state


def answers(state: PoolState, **heads: object) -> dict[str, object]:
    """What a control server answers that knows the pool so."""
    head = {"control": "control-1", "pool": "cart", "revision": 9, "silent_seconds": 41.0, "faults": {}, **heads}
    return {"/v1/records": json.loads(records_text(head, state.stored())), "/v1/xds": []}


def beat(name: str, state: MemberState, reason: str = "") -> dict[str, object]:
    return {"member": name, "boot": f"{name}1", "state": state, "reason": reason, "heard_seconds_ago": 0.1}


def own_view(name: str, state: MemberState, reason: str = "", active: tuple[int, ...] = ()) -> dict[str, object]:
    """What a member answers about itself."""
    return {"member": name, "boot": f"{name}1", "state": state, "reason": reason, "active": list(active)}


async def test_a_control_servers_answer_is_the_pool_as_it_read_it():
    with answering(answers(pool())) as (url, _):
        found, faults = await read_last_known([url.removeprefix("http://")], "cart")
    assert found is not None
    assert (found.source, found.revision, found.age, faults) == ("control-1", 9, 41.0, [])
    assert found.state == pool()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"pool": "other"}, "of pool 'other'"),
        ({"pool": "cart", "revision": "x"}, "revision"),
        ({"pool": "cart", "revision": 1, "records": [], "silent_seconds": "old"}, "silent_seconds"),
        ({"pool": "cart", "revision": 1, "silent_seconds": 1.0}, "no records"),
        ([], "no answer"),
    ],
)
async def test_an_answer_that_is_none_is_told_and_not_shown(answer, why):
    with answering({"/v1/records": answer}) as (url, _):
        found, (fault,) = await read_last_known([url.removeprefix("http://")], "cart")
    assert found is None
    assert why in fault


def test_status_shows_the_last_known_pool_while_etcd_is_silent(understudy):
    state, gone = pool(), f"127.0.0.1:{free_port()}"
    own = own_view("a", MemberState.DOWN, f"{NO_ETCD}it is reached by b")
    with answering({"/peer/v1/status": own}) as (member, _):
        state.members["a"] = At(replace(state.members["a"].record, peer=member.removeprefix("http://")), 4)
        state.members["b"] = At(replace(state.members["b"].record, peer=gone), 4)
        told = answers(state)
        told["/v1/status"] = {
            "control": "control-1",
            "heartbeats": [beat("a", MemberState.UP), beat("b", MemberState.UP)],
        }
        with answering(told) as (url, _):
            control = url.removeprefix("http://")
            read = ("status", "--etcd", f"127.0.0.1:{free_port()}", "--pool", "cart", "--control-http", control)
            shown = understudy(*read, "-o", "json")
    assert shown.exit_code == 3, shown.stderr
    view = json.loads(shown.output)
    screen = Terminal(width=200, file=io.StringIO())
    screen.print(status_table(view))
    drawn = screen.file.getvalue()
    assert (view["last_known"]["source"], view["last_known"]["age_seconds"]) == ("control-1", 41.0)
    a, b, c = view["members"]
    assert (a["state"], a["active"], a["reason"]) == ("DOWN", 2, f"{NO_ETCD}it is reached by b")
    assert (b["state"], b["active"]) == ("UP", 2)
    assert "it does not answer: cannot be reached" in b["reason"]
    assert "control-1 got a heartbeat 0.1 s ago" in b["reason"]
    assert (c["state"], c["reason"]) == ("LOST", "refused")
    assert "pool cart: etcd does not answer; 4 of 4 slots had an owner" in drawn
    assert "control-1 read the pool's records from etcd 41 s ago" in drawn
    stopped = "2 slots (0, 2) are not served until etcd is back: their active a has stopped serving them"
    assert [line for line in view["warnings"] if "are not served" in line] == [stopped], "b is heard, a serves nothing"
    assert stopped in drawn


@pytest.mark.parametrize(
    ("age", "serving", "told"),
    [
        (0.5, {"b": [1, 3]}, []),
        (9.0, {"b": [1, 3]}, ["2 slots (0, 2) are not served until etcd is back: their active a does not answer"]),
        (0.5, {"b": [1]}, ["1 slots (3) are not served until etcd is back: their active b has stopped serving them"]),
    ],
)
def test_slots_that_nobody_can_take_over_without_etcd_are_told(age, serving, told):
    heard = {("a", "a1"): MemberReport("a", "a1", MemberState.UP, "", "control-1", age)}
    assert stopped_without_etcd(pool(), heard, {"a"}, serving) == told


def test_without_any_control_server_members_of_the_note_tell(understudy, tmp_path):
    nowhere = f"127.0.0.1:{free_port()}"
    with answering({"/peer/v1/status": own_view("a", MemberState.UP, active=(0, 2))}) as (url, _):
        places = (
            MemberAddresses("a", "h:1", "h:2", url.removeprefix("http://"), "h:3"),
            MemberAddresses("b", "h:1", "h:2", nowhere, "h:3"),
        )
        front = FrontAddresses("front-1", nowhere, nowhere)
        controls = (ControlAddresses("control-1", nowhere, nowhere),)
        layout = Layout("cart", 1, (f"http://{nowhere}",), ("http://h:4",), controls, front, places)
        (tmp_path / ".understudy").mkdir()
        (tmp_path / ".understudy" / "local.json").write_text(layout.encode())
        shown = understudy("status")
    assert shown.exit_code == 3, shown.stderr
    assert re.search(r"\na +UP +2 ", shown.output)
    assert "\na: " not in shown.output, "it has no slot but those that it serves, as far as anybody knows"
    assert re.search(r"\nb +LOST ", shown.output)
    assert "\nb: it does not answer" in shown.output
    assert "so it comes from the members" in shown.output


def test_nobody_who_tells_anything_is_an_error_that_says_what_to_do(understudy):
    nowhere = f"127.0.0.1:{free_port()}"
    refused = understudy("status", "--pool", "cart", "--etcd", nowhere, "--control-http", nowhere)
    assert refused.exit_code == 2
    assert "is etcd running there?" in refused.stderr
    assert f"no control server has the last known state either: {nowhere}: " in refused.stderr


def heard(name: str, state: MemberState, reason: str = "", boot: str = "") -> dict[tuple[str, str], MemberReport]:
    boot = boot or f"{name}1"
    return {(name, boot): MemberReport(name, boot, state, reason, "control-1", 0.1)}


def test_a_member_that_is_cut_off_from_etcd_is_shown_as_control_servers_hear_it():
    """Its record says UP, and it cannot change that; then the record is gone."""
    state, why = pool(), f"{NO_ETCD}it is reached by b"
    state.table = At(Table(4, (("b",),) * 4), 9)
    state.owners = {slot: At(Owner("b", "b1", 2), 9) for slot in range(4)}
    before, _ = member_views(state)
    assert (before["state"], before["active"]) == ("UP", 0)
    assert "it may be cut off from etcd" in before["reason"], "never UP without a slot and a reason"
    told, _ = member_views(state, heard("a", MemberState.DOWN, why))
    assert (told["state"], told["reason"]) == ("DOWN", why)
    former, _ = member_views(state, heard("a", MemberState.DOWN, why, boot="a0"))
    assert former["state"] == "UP", "what a former process said is no news of this one"
    del state.members["a"]
    gone, _ = member_views(state, heard("a", MemberState.DOWN, why))
    assert (gone["state"], gone["reason"]) == ("DOWN", f"{why}; not registered")
    assert [view["member"] for view in member_views(state, heard("a", MemberState.LOST, "refused"))] == ["b"]


async def test_of_several_control_servers_the_newest_word_counts_and_lost_only_if_all_say_so():
    one = {"control": "control-1", "heartbeats": [beat("a", MemberState.LOST), {**beat("b", MemberState.UP), "x": 1}]}
    late = {**beat("b", MemberState.DOWN), "heard_seconds_ago": 9.0}
    two = {"control": "control-2", "heartbeats": [{**beat("a", MemberState.UP), "heard_seconds_ago": 2}, late, "odd"]}
    with answering({"/v1/status": one}) as (first, _), answering({"/v1/status": two}) as (second, _):
        addresses = [first.removeprefix("http://"), second.removeprefix("http://"), "127.0.0.1:9"]
        found = heard_by(await ask_controls(addresses, "/v1/status"))
    assert {who: (told.state, told.source) for who, told in found.items()} == {
        ("a", "a1"): (MemberState.UP, "control-2"),
        ("b", "b1"): (MemberState.UP, "control-1"),
    }


def test_a_control_server_tells_of_members_without_a_record_what_their_beats_say():
    detector = FailureDetector()
    detector.on_beat(1, "a", "a1", MemberState.DOWN, 5 * SECOND, reason=f"{NO_ETCD}x")
    detector.update_records([Member("b", "b1", "h:1", "h:2")], [], 5 * SECOND)
    (row,) = heartbeats_view(detector, 7 * SECOND)
    assert (row["member"], row["state"], row["reason"]) == ("a", MemberState.DOWN, f"{NO_ETCD}x")
    assert row["heard_seconds_ago"] == 2.0


async def test_a_spec_that_is_garbage_is_told_and_replaced(understudy, etcd, client, pool_name, tmp_path):
    keys, reach = PoolKeys(pool_name), ("--etcd", etcd.endpoint)
    await client.put(keys.spec, b"{garbage")
    await client.put(keys.table, Table(1, (("a",),) * 4).encode())
    await client.put(keys.member("a"), Member("a", "a1", "h:1", "h:2", MemberState.UP).encode())
    shown = understudy("status", *reach, "--pool", pool_name, "-o", "json")
    assert shown.exit_code == 1, shown.stderr
    view = json.loads(shown.output)
    assert [row["member"] for row in view["members"]] == ["a"]
    (told,) = [warning for warning in view["warnings"] if keys.spec in warning]
    refused = understudy("table", *reach, "--pool", pool_name)
    assert refused.exit_code == 2
    for text in (told, refused.stderr):
        assert f"at {keys.spec} in etcd, cannot be read" in text
        assert "understudy apply -f" in text
        assert "there is no pool" not in text
    spec = tmp_path / "pool.yaml"
    spec.write_text(f"pool: {pool_name}\nslots: 8\n")
    assert "has 4 slots and the new spec says 8" in understudy("apply", "-f", spec, *reach).stderr
    spec.write_text(f"pool: {pool_name}\nslots: 4\n")
    dry = understudy("apply", "-f", spec, *reach, "--dry-run")
    assert (dry.exit_code, "slots: 256 -> 4" in dry.output) == (1, True)
    assert understudy("apply", "-f", spec, *reach).output == f"pool {pool_name}: changed\n"


async def test_a_spec_of_another_version_is_not_taken_for_garbage(understudy, etcd, client, pool_name, tmp_path):
    await client.put(PoolKeys(pool_name).spec, json.dumps({"pool": pool_name, "slots": "many"}).encode())
    (tmp_path / "pool.yaml").write_text(f"pool: {pool_name}\n")
    refused = understudy("apply", "-f", tmp_path / "pool.yaml", "--etcd", etcd.endpoint)
    assert (refused.exit_code, "spec in etcd: slots" in refused.stderr) == (2, True)


def test_a_copied_pool_has_every_record():
    state = pool()
    again = PoolState(KEYS)
    again.apply(InformerBatch(9, (), reset=True))
    assert {key for key, _, _ in state.stored()} >= {KEYS.spec, KEYS.leader, KEYS.table, KEYS.owner(3)}
    assert again.stored() == []


@pytest.fixture
def two_sites() -> PoolState:
    """The pool with ``a`` on east and ``b`` on west, and no site offline."""
    state = pool()
    for name, site in (("a", "east"), ("b", "west")):
        state.members[name] = At(replace(state.members[name].record, site=site), 4)
    state.sites.clear()
    return state


def test_site_status_shows_the_last_known_sites_while_etcd_is_silent(understudy, two_sites):
    own = own_view("a", MemberState.UP)
    own["replication"] = {"unsaved_sessions": 0, "one_site": {"slots": 2, "seconds": 41.0}}
    with answering({"/peer/v1/status": own}) as (member, _):
        for name, peer in (("a", member.removeprefix("http://")), ("b", f"127.0.0.1:{free_port()}")):
            two_sites.members[name] = At(replace(two_sites.members[name].record, peer=peer), 4)
        with answering(answers(two_sites) | {"/v1/status": {"control": "control-1", "heartbeats": []}}) as (url, _):
            control = url.removeprefix("http://")
            where = ("--etcd", f"127.0.0.1:{free_port()}", "--pool", "cart", "--control-http", control)
            shown = understudy("site", "status", *where, "-o", "json")
            drawn = understudy("site", "status", *where).output
    assert shown.exit_code == 3, shown.stderr
    view = json.loads(shown.output)
    assert (view["last_known"]["source"], view["last_known"]["age_seconds"]) == ("control-1", 41.0)
    east, west = view["sites"]
    assert [(row["state"], row["copies"], row["if_lost"]) for row in (east, west)] == [
        ("serving", None, None),
        ("lost", None, None),
    ]
    problems = "\n".join(f"{one['what']}: {one['remedy']}" for one in view["degraded"])
    assert "no member of site west can serve: start its members again" in problems
    assert "2 slots have current copies on one site only, as their members say" in problems
    assert "writes have stopped: start these members of etcd again; if their site never returns: understudy" in problems
    assert "! this is the last known state: control-1 read the pool's records from etcd 41 s ago" in drawn
    assert "not known while etcd does not answer" in drawn


def test_site_status_fails_if_nobody_knows_the_sites(understudy):
    gone = f"127.0.0.1:{free_port()}"
    shown = understudy("site", "status", "--etcd", gone, "--pool", "cart", "--control-http", gone)
    assert (shown.exit_code, "no control server has the last known state either" in shown.stderr) == (2, True)


def test_members_that_cannot_reach_etcd_do_not_need_a_restart(two_sites):
    heard = {
        (name, f"{name}1"): MemberReport(name, f"{name}1", MemberState.DOWN, f"{NO_ETCD}no answer", name, 0.0)
        for name in ("a", "b")
    }
    found = WithoutEtcd(LastKnown("control-1", two_sites, 9, 41.0), heard, {}, {}, {}, (), {})
    view = sites_view(found.as_reported(), revision=9, now=100.0, last_known={"unasked": []})
    assert [(one["what"], one["remedy"]) for one in view["degraded"]] == [
        (f"no member of site {site} can serve", "bring etcd back") for site in ("east", "west")
    ]
