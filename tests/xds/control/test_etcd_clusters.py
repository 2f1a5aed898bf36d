"""A control server of several etcd clusters: one that is away hurts no pool of another, also at the start."""

import contextlib
from pathlib import Path
from typing import Any

from tests.harness.etcd import running_etcd
from tests.harness.waiting import until
from tests.xds.control.control_pool import Control
from tests.xds.control.test_many_pools import A, B, Pools, all_ready, served, status, stream
from understudy.statesync.pool.front_node import cluster_of_front
from understudy.xds.server import types


async def etcd_of(control: Control) -> dict[str, tuple[str, list[str]]]:
    """For each pool its etcd cluster, and those in which another pool has its name."""
    rows: list[dict[str, Any]] = (await control.ask("/v1/pools"))["pools"]
    return {row["pool"]: (row["etcd"], row["not_served_of"]) for row in rows}


async def test_pools_of_two_clusters_are_served_and_one_that_is_away_hurts_none_of_the_other(tmp_path: Path):
    async with contextlib.AsyncExitStack() as stack:
        etcds = {name: await stack.enter_async_context(running_etcd()) for name in ("east", "west")}
        clients = {name: await stack.enter_async_context(etcd.client()) for name, etcd in etcds.items()}
        east, west = (Pools(etcds[name], clients[name], tmp_path / name) for name in etcds)
        for name in etcds:
            (tmp_path / name).mkdir()
        await east.apply(A)
        await west.apply(B)
        control = east.control(clusters={name: etcd.endpoints for name, etcd in etcds.items()})
        stack.callback(east.close)
        stack.callback(west.close)

        await all_ready(control, A, B)
        assert await etcd_of(control) == {A: ("east", []), B: ("west", [])}
        assert (await status(control, B))["etcd"]["cluster"] == "west"
        await west.apply(A)
        await until(lambda: _is_told_twice(control), 40, "the pool whose name is taken is named")
        assert (await etcd_of(control))[A] == ("east", ["west"])
        await clients["west"].delete(west[A].keys.everything)

        await east.with_table(A)
        etcds["west"].kill()
        east[A].members[f"{A}-1"].kill()
        await east[A].members[f"{A}-1"].vanish()
        left = f"{A}-2"
        await east[A].table_with(lambda table: {order[0] for order in table.orders if order} == {left}, "a takeover")

        control.kill()
        control.start()
        await until(lambda: _serves(control, {A: True}), 60, "the pool of the cluster that answers is served")
        await until(lambda: _front_gets_clusters(control, A), 40, "a front Envoy of this pool is served too")
        await etcds["west"].start()
        await all_ready(control, A, B)


async def _front_gets_clusters(control: Control, pool: str) -> bool:
    async with stream(control, cluster_of_front([pool])) as one:
        await one.ask(types.CLUSTER)
        return (await one.receive()).type_url == types.CLUSTER


async def _is_told_twice(control: Control) -> bool:
    return bool((await etcd_of(control))[A][1])


async def _serves(control: Control, wanted: dict[str, bool]) -> bool:
    return await served(control) == wanted
