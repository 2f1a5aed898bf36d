"""Getting in: users and passwords, tokens that etcd forgets, and TLS with certificates on both sides."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.etcd import EtcdServer, running_etcd
from tests.harness.waiting import until
from understudy.statesync.etcd.client import EtcdClient, Rejected, Unavailable
from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.tls.pem_files import PemFiles

PASSWORD = "open sesame"


def allow(server: EtcdServer) -> None:
    server.ctl("user", "add", f"root:{PASSWORD}")
    server.ctl("user", "grant-role", "root", "root")
    server.ctl("user", "add", f"app:{PASSWORD}")
    server.ctl("role", "add", "app")
    server.ctl("role", "grant-permission", "app", "readwrite", "--prefix=true", "/app/")
    server.ctl("user", "grant-role", "app", "app")


@pytest.fixture
async def guarded() -> AsyncIterator[EtcdServer]:
    async with running_etcd(arguments=["--bcrypt-cost=4", "--auth-token=simple", "--auth-token-ttl=2"]) as server:
        allow(server)
        server.ctl("auth", "enable")
        yield server


async def test_a_user_works_where_its_role_allows_and_nowhere_else(guarded: EtcdServer) -> None:
    async with guarded.client(username="app", password=PASSWORD) as client:
        revision = await client.put("/app/key", b"x")
        assert await client.get("/app/key")
        assert (await anext(client.watch(prefix_range("/app/"), revision))).events
        async with client.lease(5) as lease:
            await client.put("/app/leased", b"x", lease=lease.id)

        with pytest.raises(Rejected, match="permission denied"):
            await client.put("/other", b"x")
        with pytest.raises(Rejected, match="permission denied"):
            await client.get("/other")
        with pytest.raises(Rejected, match="permission denied"):
            await asyncio.wait_for(anext(client.watch(KeyRange("/other", "/othes"), 1)), 40)


async def test_strangers_are_rejected(guarded: EtcdServer) -> None:
    async with guarded.client(username="app", password="wrong") as client:
        with pytest.raises(Rejected, match="authentication failed"):
            await client.put("/app/key", b"x")
        with pytest.raises(Rejected, match="authentication failed"):
            await asyncio.wait_for(anext(client.watch(prefix_range("/app/"), 1)), 40)
    async with guarded.client() as client:
        with pytest.raises(Rejected, match="user name is empty"):
            await client.get("/app/key")


async def test_a_token_that_etcd_has_forgotten_is_renewed_without_anyone_noticing(guarded: EtcdServer) -> None:
    async with guarded.client(username="app", password=PASSWORD) as client:
        begin = await client.put("/app/key", b"before")
        watch = client.watch(prefix_range("/app/"), begin + 1)
        seen = asyncio.create_task(anext_event(watch))
        async with client.lease(10) as lease:
            await client.put("/app/leased", b"x", lease=lease.id)
            assert await seen == b"x"
            seen = asyncio.create_task(anext_event(watch))
            await settled(guarded)
            guarded.kill()
            await guarded.start()

            await until(lambda: client.get("/app/key"), what="reads")
            await asyncio.gather(*(client.put("/app/key", b"after") for _ in range(20)))
            assert await asyncio.wait_for(seen, 10) == b"after"
            assert not lease.lost.is_set()


async def settled(guarded: EtcdServer) -> None:
    """Have what was written so far survive a kill."""
    async with guarded.client(username="root", password=PASSWORD) as root:
        await guarded.settle(root)


async def test_a_watch_renews_its_token_even_if_nothing_else_is_called(guarded: EtcdServer) -> None:
    async with (
        guarded.client(username="app", password=PASSWORD) as watching,
        guarded.client(username="app", password=PASSWORD) as writing,
    ):
        begin = await writing.put("/app/key", b"before")
        watch = watching.watch(prefix_range("/app/"), begin)
        assert await anext_event(watch) == b"before"
        seen = asyncio.create_task(anext_event(watch))
        await settled(guarded)
        guarded.kill()
        await guarded.start()

        await until(lambda: writing.get("/app/key"), what="reads")
        await writing.put("/app/key", b"after")
        assert await asyncio.wait_for(seen, 10) == b"after"


async def test_a_token_unused_for_longer_than_etcd_keeps_it_is_renewed(guarded: EtcdServer) -> None:
    async with (
        guarded.client(username="app", password=PASSWORD) as client,
        guarded.client(username="root", password=PASSWORD) as root,
    ):
        await client.put("/app/key", b"before")
        await forgotten(guarded)
        await client.put("/app/key", b"after")
        assert await root.get("/app/key")


async def forgotten(server: EtcdServer) -> None:
    # etcd drops simple tokens in steps of a second, 2 s after their last use, and using one to look keeps it alive.
    await asyncio.sleep(4)


async def anext_event(watch: AsyncIterator) -> bytes:
    async for batch in watch:
        if batch.events:
            return batch.events[0].kv.value
    raise AssertionError("a watch does not end")


async def test_credentials_do_no_harm_where_etcd_asks_for_none_and_work_once_it_does(etcd_server: EtcdServer) -> None:
    async with etcd_server.client(username="app", password=PASSWORD) as client:
        await client.put("/app/key", b"open")

        allow(etcd_server)
        etcd_server.ctl("auth", "enable")

        await client.put("/app/key", b"guarded")
        with pytest.raises(Rejected):
            await client.put("/other", b"x")


def openssl(where: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=where, check=True, capture_output=True, timeout=30)


def make_certificates(where: Path) -> None:
    """A CA in ``ca.pem``; ``server`` and ``client`` certificates signed by it; a foreign CA in ``foreign.pem``."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "foreign"):
        openssl(
            where, "req", "-x509", *curve, "-keyout", f"{name}-key.pem", "-out", f"{name}.pem", "-subj", f"/CN={name}"
        )
    for name in ("server", "client"):
        (where / "extensions").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl(where, "req", *curve, "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", "extensions")
        openssl(where, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)


async def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    ours = PemFiles(tmp_path / "client.pem", tmp_path / "client-key.pem", tmp_path / "ca.pem")
    nameless = PemFiles(None, None, tmp_path / "ca.pem")
    misled = PemFiles(tmp_path / "client.pem", tmp_path / "client-key.pem", tmp_path / "foreign.pem")
    async with running_etcd(tls=tmp_path) as server:
        async with EtcdClient([f"https://{server.endpoint}"], tls=ours, timeout=20) as client:
            revision = await client.put("key", b"secret")
            assert (await anext(client.watch(KeyRange("k", "l"), revision))).events
        for files in (nameless, misled, None):
            async with server.client(tls=files, timeout=1.5) as client:
                with pytest.raises(Unavailable):
                    await client.put("key", b"x")
        async with server.client(tls=misled, timeout=5) as client:
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get("key")


async def test_missing_certificate_files_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ca\.pem"):
        EtcdClient(["127.0.0.1:2379"], tls=PemFiles(None, None, tmp_path / "ca.pem"))
