"""A pool that sees nothing of etcd but its own keys, over TLS or with a password, and tokens that run out under way."""

import asyncio
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.harness.cable import cable_to
from tests.harness.certificates import Authority
from tests.harness.commands import ROOT, commands, ready
from tests.harness.etcd import EtcdServer, etcd_binary, running_etcd
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import free_port, until
from understudy.statesync.etcd.client import EtcdClient, Rejected
from understudy.statesync.etcd.informer import Informer
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.tls.pem_files import PemFiles

BOOK = re.search(r"```sh\n(.*?)```", (ROOT / "docs/security.md").read_text(), re.DOTALL)
PASSWORD = "open-sesame"
TOKEN_TTL = 1


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    arguments = ["--bcrypt-cost=4", "--auth-token=simple", f"--auth-token-ttl={TOKEN_TTL}"]
    async with running_etcd(arguments=arguments) as server:
        by_the_book(server, tmp_path)
        yield server


def by_the_book(server: EtcdServer, home: Path) -> None:
    """Run the lines of docs/security.md: a role and a user for pool ``cart``, and authentication switched on."""
    assert BOOK is not None
    for name in ("root", "cart"):
        (home / f"{name}.password").write_text(f"{PASSWORD}\n")
    path = f"{etcd_binary('etcdctl').parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-euc", BOOK[1]],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": server.endpoint},
    )
    assert done.returncode == 0, done.stderr


@pytest_asyncio.fixture
async def pool(guarded: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SidecarPool]:
    monkeypatch.setenv("UNDERSTUDY_ETCD_USER", "understudy-cart")
    monkeypatch.setenv("UNDERSTUDY_ETCD_PASSWORD", PASSWORD)
    async with sidecar_pool(guarded, "cart", username="understudy-cart", password=PASSWORD) as pool:
        pool.logs = tmp_path
        pool.flags = lambda _: ["--drain-seconds", 0]
        yield pool


async def test_a_pool_confined_to_its_prefix_survives_a_killed_member_and_forgotten_tokens(
    pool: SidecarPool, tmp_path: Path
) -> None:
    http, grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    async with commands(tmp_path) as running:
        await running.start(
            *("control", "control", "--name", "control-1", "--pool", "cart", "--etcd", pool.etcd.endpoint),
            *("--grpc", grpc, "--http", http),
        )
        await ready(http)
        await pool.start("a", "b")
        await until(lambda: owners_are(pool, {"a", "b"}), 60, "both members own slots")
        await writes_go_on(pool, "ab", seconds=3 * TOKEN_TTL)

        await asyncio.sleep(2 * TOKEN_TTL)  # nothing but the pool's own upkeep: etcd drops tokens unused for TOKEN_TTL
        assert (await pool.call("b", "GET", "/k"))[0] == 200
        pool.kill("a")
        await until(lambda: owners_are(pool, {"b"}), 60, "the survivor owns every slot")
        assert (await pool.call("b", "GET", "/k"))[0] == 200
        await writes_go_on(pool, "b", seconds=2 * TOKEN_TTL)
        code, status = await running.run("status", "--pool", "cart", "--etcd", pool.etcd.endpoint)
        assert (code, "control-1" in status) == (0, True), status
        for log in (running.log("control"), pool.log("b")):
            assert "permission denied" not in log
            assert "lease was lost" not in log


async def owners_are(pool: SidecarPool, members: set[str]) -> bool:
    owners = await pool.owners()
    return len(owners) == pool.spec.slots and {owner.active for owner in owners.values()} == members


async def writes_go_on(pool: SidecarPool, members: str, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        status, _, body = await pool.call(members[number % len(members)], "PUT", "/k", f"{number}")
        assert status in (200, 201), body
        await asyncio.sleep(0.05)


async def test_another_pools_keys_are_out_of_reach(pool: SidecarPool, tmp_path: Path) -> None:
    other = PoolKeys("till")
    with pytest.raises(Rejected, match="permission denied"):
        await pool.client.get(other.spec)
    with pytest.raises(Rejected, match="permission denied"):
        await pool.client.put(other.session(0, "k"), b"x")
    with pytest.raises(Rejected, match="permission denied"):
        await pool.client.get(PoolKeys("cart2").spec)
    etcd = ("--etcd", pool.etcd.endpoint)
    async with commands(tmp_path) as running:
        for command in (
            ("sidecar", "--member", "a", "--pool", "till", "--app", "127.0.0.1:1", *etcd, *lone()),
            ("control", "--name", "c", "--pool", "till", *etcd, *(f"--{p}=127.0.0.1:{free_port()}" for p in PORTS)),
        ):
            code, told = await running.run(*command)
            assert code == 2
            assert "refuses access to pool till to user understudy-cart" in told
            assert "readwrite on the prefix /understudy/v1/till/" in told
            assert "Traceback" not in told
        code, told = await running.run("status", "--pool", "till", *etcd)
        assert (code, "permission denied" in told, "Traceback" in told) == (2, True, False), told


PORTS = ("grpc", "http")


def lone() -> tuple[str, ...]:
    return ("--session-api", f"127.0.0.1:{free_port()}", "--peer", f"127.0.0.1:{free_port()}")


async def test_a_wrong_password_is_named_at_the_start(
    guarded: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_ETCD_PASSWORD", "guessed")
    command = ("sidecar", "--member", "a", "--pool", "cart", "--app", "127.0.0.1:1", "--etcd", guarded.endpoint)
    async with commands(tmp_path) as running:
        code, told = await running.run(*command, "--etcd-user", "understudy-cart", *lone())
    assert code == 2
    assert "authentication failed" in told
    assert "guessed" not in told


@pytest.mark.parametrize("user", [None, "understudy-cart"])
async def test_a_watcher_survives_that_anybody_may_compact(guarded: EtcdServer, user: str | None) -> None:
    keys, seen = PoolKeys("cart"), []
    known = {"username": "understudy-cart", "password": PASSWORD}
    hostile = {"username": user, "password": PASSWORD} if user else {}
    async with (
        cable_to(guarded.endpoint) as cable,
        EtcdClient([cable.address], **known) as client,
        guarded.client(**known) as writer,
        guarded.client(**hostile) as stranger,
    ):
        informer = Informer(client, keys.records, seen.append)
        watching = asyncio.create_task(informer.run())
        await asyncio.wait_for(informer.synced.wait(), 60)
        cable.reset()
        revision = max([await writer.put(keys.table, str(number).encode()) for number in range(5)])
        await stranger.compact(revision)
        cable.mend()

        await asyncio.wait_for(informer.caught_up(revision), 60)
        assert informer.resets == 2
        assert seen[-1].events[-1].kv.value == b"4"
        after = await writer.put(keys.table, b"after")
        await asyncio.wait_for(informer.caught_up(after), 60)
        watching.cancel()


async def test_a_sidecar_reaches_etcd_over_tls_by_its_flags(pool_name: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    server, client = authority.issue("server", "IP:127.0.0.1"), authority.issue("client", "DNS:client")
    (tmp_path / "authority" / "server-key.pem").write_bytes(server.key.read_bytes())
    files = PemFiles(client.cert, client.key, authority.ca)
    flags = ["--etcd-ca", client.ca, "--etcd-cert", client.cert, "--etcd-key", client.key, "--drain-seconds", 0]
    async with running_etcd(tls=tmp_path / "authority") as etcd, sidecar_pool(etcd, pool_name, tls=files) as pool:
        pool.logs = tmp_path
        pool.flags = lambda _: flags
        await pool.start("a")
        await pool.settle(("a",))
        assert (await pool.call("a", "PUT", "/k", "over TLS"))[0] == 201

        async with commands(tmp_path) as running:
            code, told = await running.run(
                *("sidecar", "--member", "b", "--pool", pool_name, "--app", "127.0.0.1:1"),
                *("--etcd", etcd.endpoint, "--etcd-ca", str(client.ca), *lone()),
            )
            assert code == 2
            assert "etcd does not answer" in told


async def test_a_revoked_lease_is_noticed_at_once_under_a_role_confined_to_a_prefix(guarded: EtcdServer) -> None:
    async with guarded.client(username="understudy-cart", password=PASSWORD) as client:
        await client.put(PoolKeys("cart").spec, b"x")
        async with client.lease(12) as lease:
            await client.put(PoolKeys("cart").member("a"), b"x", lease=lease.id)
            guarded.ctl("lease", "revoke", f"{lease.id:x}", "--user", f"root:{PASSWORD}")
            await until(lease.lost.is_set, 10, "the next keepalive finds the lease gone, before it could have expired")
