"""The heartbeat server's own loop; ``test_failure_detector.py`` has what it decides."""

import asyncio

import pytest

from understudy.xds.membership.failure_detector import FailureDetector
from understudy.xds.membership.heartbeat_server import HeartbeatServer


@pytest.mark.parametrize("steps", range(5))
async def test_it_ends_when_it_is_cancelled_though_etcd_brings_news_at_that_moment(steps: int) -> None:
    heartbeat = HeartbeatServer("cart", FailureDetector(), now_ns=lambda: 0, on_claim=lambda: None)
    running = asyncio.create_task(heartbeat.run())
    await asyncio.sleep(0.05)
    heartbeat.update_records([], [])
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=5)
    assert done
