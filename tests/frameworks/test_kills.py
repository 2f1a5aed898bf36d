"""Web frameworks, unmodified, behind a pool of three members: a kill under load costs no acknowledged item."""

import asyncio
import shlex
from pathlib import Path

import aiohttp
import pytest

from tests.frameworks.applications import DJANGO, EXPRESS, FLASK
from tests.frameworks.shoppers import Shopper
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.waiting import until
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.spec import PoolSpec, SessionKey

pytestmark = pytest.mark.heavy
SHOPPERS = 12
ITEMS = 3
"""Items that each shopper adds before the kill, and again after it, at the least."""


ROUTED = {
    "flask": (FLASK, SessionKey(cookie="session")),  # the store's key falls into another slot than the cookie
    "django": (DJANGO, SessionKey(preset="django")),
    "express": (EXPRESS, SessionKey(preset="express")),
}


@pytest.mark.parametrize("name", ROUTED)
async def test_every_acknowledged_item_survives_a_kill_under_load(name: str, tmp_path: Path) -> None:
    example, session_key = ROUTED[name]
    spec = PoolSpec(pool="shop", slots=32, session_key=(session_key,))
    settings = LocalSettings(tmp_path, spec, app=shlex.join(example.command()), app_timeout=60)
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        LocalPool(settings) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        aiohttp.ClientSession(timeout=timeout) as http,
        killed_at_the_end(pool),
    ):
        await settled(pool.layout, etcd)
        shoppers = [Shopper(http, pool.layout.front_url, example.cookie, f"user{number}") for number in range(SHOPPERS)]
        done = asyncio.Event()
        async with asyncio.TaskGroup() as load:
            for shopper in shoppers:
                load.create_task(shopper.shop(done))
            await until(lambda: all(len(each.acknowledged) >= ITEMS for each in shoppers), 60, "all have begun")
            pool.processes.kill(*pool.member_processes("shop-1"))
            before = {each.name: len(each.acknowledged) for each in shoppers}
            await until(
                lambda: all(len(each.acknowledged) >= before[each.name] + ITEMS for each in shoppers),
                60,
                "all have gone on",
            )
            done.set()
        for shopper in shoppers:
            await shopper.check()
        assert len({shopper.cookie for shopper in shoppers}) == SHOPPERS
