"""Leases against a real etcd: they live as long as their owner, and the owner knows when they may be gone."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.harness.cable import cable_to
from tests.harness.etcd import EtcdServer
from tests.harness.waiting import stays, until
from understudy.statesync.etcd import lease as etcd_lease
from understudy.statesync.etcd.client import EtcdClient, LeaseNotFound
from understudy.statesync.etcd.lease import Lease

TTL = 2


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_lease, "SHORTEST_TTL", TTL)


@asynccontextmanager
async def leased(client: EtcdClient, ttl: int) -> AsyncIterator[Lease]:
    """A lease of a client whose calls may take less time than a busy machine needs for some of them."""

    async def granted() -> Lease:
        return await client.lease(ttl).__aenter__()

    lease = await until(granted, what="the lease")
    try:
        yield lease
    finally:
        await lease.__aexit__(None, None, None)


async def test_a_lease_outlives_its_ttl_while_it_is_held_and_ends_with_the_block(
    client: EtcdClient, pool_name: str
) -> None:
    ttl = 6  # a keepalive may be late by some seconds, as on a busy machine
    async with client.lease(ttl) as lease:
        await client.put(pool_name, b"here", lease=lease.id)
        await stays(lambda: client.get(pool_name), ttl * 1.5, "the key on the lease")
        assert not lease.lost.is_set()

    assert lease.lost.is_set()
    assert await client.get(pool_name) is None


async def test_a_revoked_lease_is_lost(etcd: EtcdServer, client: EtcdClient, pool_name: str) -> None:
    async with client.lease(TTL) as lease:
        await client.put(pool_name, b"here", lease=lease.id)
        etcd.ctl("lease", "revoke", f"{lease.id:x}")

        await until(lease.lost.is_set, what="the owner learns of it")
        with pytest.raises(LeaseNotFound):
            await client.put(pool_name, b"again", lease=lease.id)


async def test_a_lease_survives_a_restart_of_etcd_that_is_shorter_than_its_ttl(
    etcd_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "understudy.statesync.etcd.lease")
    ttl = 12
    async with etcd_server.client() as patient, etcd_server.client(timeout=0.3) as client, leased(client, ttl) as lease:
        await patient.put("member", b"here", lease=lease.id)
        await etcd_server.settle(patient)
        etcd_server.kill()
        caplog.clear()
        await until(lambda: "not renewed yet" in caplog.text, what="a keepalive has failed")
        await etcd_server.start()

        await stays(lambda: patient.get("member", timeout=20), ttl * 1.2, "the key on the lease")
        assert not lease.lost.is_set()


async def test_a_lease_outlives_its_ttl_although_each_keepalive_takes_longer_than_a_call_may(
    etcd: EtcdServer, client: EtcdClient, pool_name: str
) -> None:
    ttl = 6
    async with (
        cable_to(etcd.endpoint) as cable,
        EtcdClient([cable.address], timeout=0.4) as late,
        leased(late, ttl) as lease,
    ):
        await client.put(pool_name, b"here", lease=lease.id)
        cable.delay = 0.25  # each way

        await stays(lambda: client.get(pool_name), ttl * 1.5, "the key on the lease")
        assert not lease.lost.is_set()
        cable.delay = 0.0


async def test_a_lease_counts_as_lost_when_etcd_stays_silent(etcd_server: EtcdServer) -> None:
    async with etcd_server.client(timeout=0.5) as client, leased(client, TTL) as lease:
        etcd_server.pause()
        await until(lease.lost.is_set, what="the owner gives the lease up")
        etcd_server.resume()


async def test_a_lease_can_be_left_while_etcd_is_down(etcd_server: EtcdServer) -> None:
    async with etcd_server.client(timeout=0.3) as client, leased(client, TTL) as lease:
        etcd_server.kill()

    assert lease.lost.is_set()


async def test_closing_the_client_loses_its_leases(etcd: EtcdServer) -> None:
    client = etcd.client()
    lease = client.lease(TTL)
    async with lease:
        await client.close()
        await until(lease.lost.is_set, what="the lease is given up")


async def test_leases_shorter_than_the_bound_are_refused(client: EtcdClient) -> None:
    with pytest.raises(ValueError, match="at least 2 s"):
        client.lease(1)
