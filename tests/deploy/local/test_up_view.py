"""What ``up`` shows while it runs is true at that moment: processes that can be killed, and the failovers that were."""

import io
import time
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tests.harness.recorded import answering
from understudy.deploy.common.layout import ControlAddresses, DistantSite, FrontAddresses, Layout, MemberAddresses
from understudy.deploy.inspect.views import status_view
from understudy.deploy.local import up_view
from understudy.deploy.local.up_view import Failovers, Now, display, distant_things, failover_line, kill_line
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.state import PoolState

MEMBERS = tuple(
    MemberAddresses(name, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4") for name in ("a", "b")
)
LAYOUT = Layout(
    "cart",
    1,
    ("http://127.0.0.1:5",),
    ("",),
    (ControlAddresses("control-1", "x:1", "x:2"),),
    FrontAddresses("f", "y:1", "y:2"),
    MEMBERS,
)
TRACE = "ab" * 16


def processes(**changed: tuple[str, int]) -> list[dict[str, Any]]:
    """Two members of two processes each; ``a_app=("restarting", 0)`` changes one."""
    told = {
        "a_app": ("running", 11),
        "a_sidecar": ("running", 12),
        "b_app": ("running", 21),
        "b_sidecar": ("running", 22),
    }
    return [
        {"name": name.replace("_", "/"), "state": state, "pid": pid, "restarts": 0, "reason": "ended by SIGKILL"}
        for name, (state, pid) in (told | changed).items()
    ]


def now(**changed: tuple[str, int]) -> Now:
    view = status_view(PoolState(PoolKeys("cart")), revision=1)
    return Now(LAYOUT, processes(**changed), example=True, tcp=False, view=view)


def drawn(what: Now, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=100, height=height)
    console.print(display(what))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(slots: int = 85, **more: object) -> dict[str, Any]:
    return {
        "trace": TRACE,
        "kind": "takeover",
        "drill": "",
        "from": ["a"],
        "to": {"b": slots},
        "slots": slots,
        "cause": "connection refused",
        "started": time.time(),
        "took_ms": None,
        **more,
    }


def test_what_is_said_to_kill_a_member_names_processes_that_run() -> None:
    assert kill_line(now()) == "kill a: kill -9 11 12"
    assert kill_line(now(a_app=("restarting", 0))) == "kill b: kill -9 21 22"
    assert kill_line(now(a_sidecar=("starting", 13))) == "kill b: kill -9 21 22"
    assert kill_line(now(a_app=("running", 31), a_sidecar=("running", 32))) == "kill a: kill -9 31 32"
    nobody = now(a_app=("killed", 0), b_sidecar=("restarting", 0))
    assert kill_line(nobody) == ""
    assert "kill -9" not in drawn(nobody)


def test_the_display_has_the_commands_and_failovers_of_this_moment() -> None:
    shown = drawn(replace(now(a_app=("running", 31)), failovers=[row(took_ms=69.4)]))
    assert "kill -9 31 12" in shown
    assert "took 69 ms: takeover a > b (85): connection refused" in shown
    assert "curl -i -X POST http://y:1/cart" in shown


def test_without_etcd_the_processes_are_shown_and_why_nothing_else_is() -> None:
    shown = drawn(replace(now(), view=None, error="etcd: nobody answers"))
    assert "etcd: nobody answers" in shown
    assert "a/sidecar" in shown


async def test_only_failovers_since_the_start_are_shown_with_the_length_that_control_servers_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(up_view, "DURATION_TIMEOUT", 20.0)
    known = {"traces": [{"trace_id": TRACE, "total_ms": 31.4}]}
    with answering({"/v1/traces": known}) as (address, asked):
        failovers = Failovers([address.removeprefix("http://")])
        before = row(trace="cd" * 16, started=time.time() - 100)
        (shown,) = await failovers.latest([row(), before])
        assert (shown["trace"], shown["took_ms"]) == (TRACE, 31.4)
        await failovers.latest([row()])
        assert len(asked) == 1, "what is known is not asked again"


async def test_a_silent_control_server_keeps_no_failover_from_being_shown() -> None:
    (shown,) = await Failovers(["127.0.0.1:9"]).latest([row()])
    assert shown["took_ms"] is None
    assert " took" not in failover_line(shown)


def test_a_failover_is_told_once_as_a_line_when_its_slots_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up_view, "UNCHANGED_FOR", 0.0)
    failovers = Failovers([])
    assert failovers.to_print([row(43)]) == []
    assert failovers.to_print([row(85)]) == [], "it has just changed"
    (told,) = failovers.to_print([row(85, took_ms=69.4)])
    assert "took 69 ms: takeover a > b (85): connection refused; see 'understudy trace abababababab'" in told
    assert failovers.to_print([row(85)]) == []


def test_two_distant_sites_have_each_their_processes_in_the_display_and_commands_to_try():
    sides = [
        replace(LAYOUT, distant=DistantSite(site, "z:1", peer, ("http://z:2",), f"/s/{peer}"))
        for site, peer in (("east", "west"), ("west", "east"))
    ]
    one, other = (replace(now(), layout=layout) for layout in sides)
    console = Console(file=io.StringIO(), width=160, height=60)
    console.print(display(one, other))
    console.print(distant_things(sides, example=True))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "east: a/app" in shown
    assert "west: a/app" in shown
    assert "UNDERSTUDY_DIR=/s/east understudy home move --to west" in shown
