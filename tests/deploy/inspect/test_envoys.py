"""Status of Envoys: put together from all control servers, and as the command shows it for a real one."""

import json

import pytest
from rich.console import Console

from tests.harness.commands import commands, ready
from tests.harness.waiting import free_port, until
from understudy.deploy.inspect.envoys import envoys_table, envoys_view, has_errors, xds_table
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState
from understudy.statesync.pool.spec import PoolSpec

CDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
RDS = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"


def row(node: str, type_url: str, state: str = "SYNCED", error: str = "") -> dict:
    return {"node": node, "type_url": type_url, "sent": "v2", "acked": "v1", "state": state, "error": error}


def drawn(what) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_envoys_of_all_control_servers_are_listed_and_each_is_as_well_as_its_worst_type():
    answers = {
        "control-1": [row("front-2", CDS), row("front-2", RDS, "ERROR", "no [such] cluster")],
        "control-2": [row("front-1", CDS), row("front-1", RDS, "STALE")],
    }
    view = envoys_view(answers)
    assert [(node["node"], node["control"], node["state"]) for node in view["nodes"]] == [
        ("front-1", "control-2", "STALE"),
        ("front-2", "control-1", "ERROR"),
    ]
    assert has_errors(view)
    assert "RDS: no [such] cluster" in drawn(envoys_table(view))
    lines = drawn(xds_table({"envoys": view})).splitlines()
    assert lines[0].split() == ["NODE", "CONTROL", "TYPE", "SENT", "ACKED", "STATE", "ERROR"]
    assert lines[4].split() == ["front-2", "control-1", "RDS", "v2", "v1", "ERROR", "no", "[such]", "cluster"]


def test_a_control_server_that_does_not_answer_is_named_and_hides_nobody_else():
    view = envoys_view({"control-1": "10.0.0.1:18001: no answer in time", "control-2": [row("front-1", CDS)]})
    assert not has_errors(view)
    shown = drawn(envoys_table(view))
    assert "front-1" in shown
    assert "control-1 does not answer: 10.0.0.1:18001: no answer in time" in shown


def test_without_envoys_there_is_nothing_to_draw_and_xds_says_so():
    view = envoys_view({"control-1": []})
    assert envoys_table(view) is None
    assert "no Envoy is connected" in drawn(xds_table({"envoys": view}))


@pytest.mark.parametrize("variant", ["delta", "sotw"])
async def test_the_command_shows_a_real_envoy_on_the_second_of_two_control_servers(
    tmp_path, etcd, client, pool_name, variant
):
    keys = PoolKeys(pool_name)
    await client.put(keys.spec, PoolSpec(pool=pool_name, slots=8).encode())
    member = Member("cart-1", "boot", f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", MemberState.READY)
    await client.put(keys.member("cart-1"), member.encode())
    grpc: dict[str, str] = {}
    async with commands(tmp_path) as running:
        for name in ("control-1", "control-2"):
            grpc[name], http = (f"127.0.0.1:{free_port()}" for _ in range(2))
            where = ("--grpc", grpc[name], "--http", http)
            await running.start(name, "control", "--name", name, "--pool", pool_name, "--etcd", etcd.endpoint, *where)
            await ready(http)
        await running.start(
            "front-1",
            *("envoy", "--node", "front-1", "--pool", pool_name, "--control", grpc["control-2"], "--xds", variant),
            *("--listen", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{free_port()}", "--concurrency", "1"),
            *("--drain", "0"),
        )
        where = ("--etcd", etcd.endpoint, "--pool", pool_name)

        async def synced() -> list:
            code, told = await running.run("status", "--xds", "-o", "json", *where)
            nodes = json.loads(told)["envoys"]["nodes"]
            done = [(node["node"], node["control"], node["state"]) for node in nodes]
            return (
                nodes
                if (code, done) == (0, [("front-1", "control-2", "SYNCED")]) and len(nodes[0]["types"]) == 4
                else []
            )

        (node,) = await until(synced, 40, "front-1 is synced", every=0.3)
        assert [one["type"] for one in node["types"]] == ["CDS", "EDS", "LDS", "RDS"]
        assert all(one["sent"] == one["acked"] != "" for one in node["types"])

        async def drawn_as_synced() -> bool:
            _, shown = await running.run("status", *where)
            lines = [line.split()[:3] for line in shown.splitlines() if line.startswith("front-1")]
            return lines == [["front-1", "control-2", "SYNCED"]]

        # It gets news meanwhile: nobody answers for the member.
        await until(drawn_as_synced, 40, "status draws it as synced", every=0.3)
