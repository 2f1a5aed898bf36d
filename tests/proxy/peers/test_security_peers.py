"""The peer API over mTLS: what works as before, who is turned away, and what wrong certificates must not cause."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from tests.harness.certificates import Authority
from tests.harness.commands import commands, ready
from tests.harness.etcd import EtcdServer
from tests.harness.secrets import write_secret
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import free_port, stays, until
from tests.proxy.members import probe_of
from understudy.proxy.member.pool_view import Peer
from understudy.proxy.peers.peer_client import PeerClient
from understudy.proxy.peers.peer_probe import PeerProbe
from understudy.proxy.peers.peer_protocol import REPLICATION_PATH, ProbeResult
from understudy.statesync.tls.peer_tls import Identity, PeerTls, trust_fault
from understudy.xds.membership.heartbeat_server import ask_peer
from understudy.xds.membership.member_health import ProbeOutcome

A_FIRST = (("a", "b"),)
B_FIRST = (("b", "a"),)


def flags(identity: Identity) -> list[object]:
    return ["--tls-cert", identity.cert, "--tls-key", identity.key, "--tls-ca", identity.ca, "--drain-seconds", 0]


@pytest_asyncio.fixture
async def authority(tmp_path: Path, pool_name: str) -> Authority:
    return Authority(tmp_path / "authority", pool_name)


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str, tmp_path: Path, authority: Authority) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        pool.logs = tmp_path
        pool.flags = lambda name: flags(authority.member(name))
        yield pool


async def probed(caller: Identity, pool: SidecarPool, member: str, peer: str = "") -> ProbeResult:
    client = PeerClient(PeerTls(caller))
    try:
        probe, asked = probe_of(client), Peer(member, peer or pool.members[member].peer)
        return await until(lambda: answered(probe, asked), 120, f"{member} is probed")
    finally:
        await client.close()


async def answered(probe: PeerProbe, peer: Peer) -> ProbeResult | None:
    found = await probe.probe(peer, patience=20)  # for three tries
    return None if found in (ProbeResult.SILENT, ProbeResult.VOID) else found


async def test_calls_handovers_and_takeovers_go_over_mtls(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    assert (await pool.call("b", "PUT", "/k", "one"))[:2][0] == 201
    assert (await pool.call("b", "GET", "/k"))[1]["understudy-served-by"] == "a"

    await pool.settle(*B_FIRST)
    assert (await pool.call("a", "PUT", "/k", "two"))[1]["understudy-served-by"] == "b"
    assert {owner.cause for owner in (await pool.owners()).values()} == {"rebalance"}, "no takeover"

    pool.kill("b")
    status, headers, body = await pool.call("a", "GET", "/k")
    assert (status, headers["understudy-served-by"], body) == (200, "a", b"two")


async def test_the_peer_port_speaks_to_the_pools_certificates_alone(
    pool: SidecarPool, authority: Authority, tmp_path: Path
) -> None:
    await pool.start("a")
    await pool.settle(("a",))
    base = f"https://{pool.members['a'].peer}/peer/v1"
    await pool.call("a", "PUT", "/k", "secret")

    async def ask(identity: Identity, path: str, method: str = "GET") -> int:
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, base + path, ssl=PeerTls(identity).client("a")) as answer,
        ):
            assert answer.status == 200 or b"secret" not in await answer.read()
            return answer.status

    member, control = authority.member("x"), authority.control("control-1")
    named, envoy = authority.issue("a2", "DNS:a"), authority.issue("front-1", "DNS:front-1")
    operator = authority.issue("op", f"URI:{authority.trust.prefix}operator/op")
    assert [await ask(who, "/probe") for who in (member, control, operator, named, envoy)] == [200, 200, 200, 200, 403]
    assert [await ask(who, "/sessions/k") for who in (member, control, operator, envoy)] == [200, 403, 403, 403]
    assert await ask(control, "/handover/activate", "POST") == 403
    assert await ask(control, "/handover/prepare", "POST") == 403
    assert await ask(operator, "/take", "POST") == 403
    replication = URL(base).with_path(REPLICATION_PATH)
    assert [await replicates(who, replication) for who in (member, control, operator, envoy)] == [101, 403, 403, 403]

    stranger = Authority(tmp_path / "other", pool.keys.pool).member("x")
    misled = Identity(stranger.cert, stranger.key, authority.ca, authority.trust)
    for context in (PeerTls(misled).client("a"), without_certificate()):
        with pytest.raises(aiohttp.ClientError) as caught:
            async with aiohttp.ClientSession() as http:
                await http.get(f"{base}/probe", ssl=context)
        assert trust_fault(caught.value) is not None

    with pytest.raises(aiohttp.ClientError):
        async with aiohttp.ClientSession() as http:
            await http.get(f"http://{pool.members['a'].peer}/peer/v1/probe")


async def replicates(identity: Identity, url: URL) -> int:
    """The status of the answer to an active that wants to send copies; 101: the connection is open."""
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(url, ssl=PeerTls(identity).client("a")):
            return 101
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status


def without_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_what_a_probe_finds_behind_certificates(pool: SidecarPool, authority: Authority, tmp_path: Path) -> None:
    await pool.start("a")
    me, at = authority.member("b"), pool.members["a"].peer
    stranger = Authority(tmp_path / "other", pool.keys.pool).member("b")

    assert await probed(me, pool, "a") is ProbeResult.ALIVE
    assert await probed(me, pool, "c", at) is ProbeResult.REPLACED
    assert await probed(stranger, pool, "a") is ProbeResult.UNTRUSTED
    unknown = Identity(stranger.cert, stranger.key, authority.ca, authority.trust)
    assert await probed(unknown, pool, "a") is ProbeResult.UNTRUSTED
    assert await probed(authority.issue("front-1", "DNS:front-1"), pool, "a") is ProbeResult.UNTRUSTED
    assert await probed(me, pool, "a", f"127.0.0.1:{free_port()}") is ProbeResult.GONE
    assert not ProbeResult.UNTRUSTED.condemns


async def test_a_control_servers_probe_tells_the_same_over_mtls(
    pool: SidecarPool, authority: Authority, tmp_path: Path
) -> None:
    await pool.start("a")
    record = await pool.record("a")
    assert record is not None
    control, at = PeerTls(authority.control("control-1")), record.peer
    stranger = PeerTls(Authority(tmp_path / "other", pool.keys.pool).control("control-1"))
    envoy = PeerTls(authority.issue("front-1", "DNS:front-1"))

    async def found(member: str, peer: str, tls: PeerTls) -> tuple[ProbeOutcome, str] | None:
        async with aiohttp.ClientSession() as http:
            finding, boot = await ask_peer(http, member, peer, tls, timeout_seconds=60)
        return None if finding is ProbeOutcome.SILENT else (finding, boot)

    for member, peer, tls, expected in (
        ("a", at, control, (ProbeOutcome.ANSWERED, record.boot)),
        ("b", at, control, (ProbeOutcome.ANSWERED, "of another member")),
        ("a", at, stranger, (ProbeOutcome.VOID, "")),
        ("a", at, envoy, (ProbeOutcome.VOID, "")),
        ("a", f"127.0.0.1:{free_port()}", control, (ProbeOutcome.REFUSED, "")),
    ):
        assert await until(partial(found, member, peer, tls), 40, "an answer to the probe") == expected


async def test_a_pool_with_mtls_everywhere_survives_a_killed_member(
    pool: SidecarPool, authority: Authority, tmp_path: Path
) -> None:
    http, grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    mine = flags(authority.control("control-1"))[:6]
    async with commands(tmp_path) as running:
        await running.start(
            *("control", "control", "--name", "control-1", "--pool", pool.keys.pool, "--etcd", pool.etcd.endpoint),
            *("--grpc", grpc, "--http", http, *map(str, mine)),
        )
        await ready(http)
        await pool.start("a", "b")
        await until(lambda: owned_by(pool, {"a", "b"}), 60, "both own slots")
        assert (await pool.call("a", "PUT", "/k", "kept"))[0] == 201
        pool.kill("a")
        await until(lambda: owned_by(pool, {"b"}), 60, "the survivor owns every slot")
        assert (await pool.call("b", "GET", "/k"))[2] == b"kept"
        await until(lambda: "lost: a" in running.log("control"), 30, "the control server says whom it took for lost")


async def owned_by(pool: SidecarPool, members: set[str]) -> bool:
    owners = await pool.owners()
    return len(owners) == pool.spec.slots and {owner.active for owner in owners.values()} == members


async def test_a_member_whose_certificate_is_not_believed_loses_no_slot(pool: SidecarPool, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other", pool.keys.pool).member("b")
    believed = pool.flags
    assert believed is not None
    pool.flags = lambda name: flags(stranger) if name == "b" else believed(name)
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    before = await pool.owners()
    assert (await pool.call("a", "PUT", "/k", "one"))[0] == 201

    asked = asyncio.create_task(pool.call("b", "GET", "/k"))
    await pool.write_table(A_FIRST, lost={"a": before[0].boot})
    status, _, body = await asked

    assert (status, b"no-owner" in body) == (503, True)
    await stays(lambda: same_owners(pool, before), 1, "no slot moves over a certificate")
    assert (await pool.call("a", "GET", "/k"))[0] == 200
    assert "cannot be trusted" in pool.log("b")


async def same_owners(pool: SidecarPool, before: object) -> bool:
    return await pool.owners() == before


async def test_certificates_renewed_in_place_are_used_without_a_restart(
    pool: SidecarPool, authority: Authority, tmp_path: Path
) -> None:
    await pool.start("a")
    renewed = Authority(tmp_path / "renewed", pool.keys.pool)
    mine = authority.member("a")
    caller = renewed.member("b")
    assert await probed(caller, pool, "a") is ProbeResult.UNTRUSTED
    for file, new in zip((mine.key, mine.cert, mine.ca), _parts(renewed.member("a")), strict=True):
        shutil.copy(new, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    assert await probed(caller, pool, "a") is ProbeResult.ALIVE


def _parts(identity: Identity) -> tuple[Path, Path, Path]:
    return identity.key, identity.cert, identity.ca


async def test_an_unprotected_port_beyond_loopback_needs_to_be_asked_for(
    etcd: EtcdServer, pool_name: str, tmp_path: Path, authority: Authority
) -> None:
    tokens = tmp_path / "tokens"
    write_secret(tokens, "0123456789abcdef0123456789abcdef\n")
    where = ("--member", "a", "--pool", pool_name, "--app", "127.0.0.1:1", "--etcd", etcd.endpoint)
    peer, api = f"0.0.0.0:{free_port()}", f"0.0.0.0:{free_port()}"
    lone = ("--session-api", f"127.0.0.1:{free_port()}", "--peer", f"127.0.0.1:{free_port()}")
    async with commands(tmp_path) as running:
        for options, named in (
            ((*lone, "--peer", peer), ("--peer", "not loopback", "--tls-cert", "--insecure")),
            ((*lone, "--session-api", api), ("--session-api", "not loopback", "--session-token-file", "--insecure")),
            ((*lone, "--redis", api), ("--redis", "not loopback", "--session-token-file", "--insecure")),
        ):
            code, told = await running.run("sidecar", *where, *options)
            assert code == 2
            assert all(word in told for word in named), told
            assert "Traceback" not in told
        mine = flags(authority.member("a"))
        for name, options in (
            ("asked", ("--peer", peer, "--session-api", api, "--insecure")),
            ("guarded", ("--peer", peer, "--session-api", api, "--session-token-file", str(tokens), *map(str, mine))),
        ):
            await running.start(name, "sidecar", *where, *options)
            await until(lambda: lives(api), 40, f"the sidecar {name} listens")
            await running.kill(name)


async def lives(address: str) -> bool:
    port = address.rpartition(":")[2]
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/healthz") as answer:
        return answer.status == 200


async def test_certificate_files_that_do_not_fit_are_named_at_the_start(
    etcd: EtcdServer, pool_name: str, tmp_path: Path, authority: Authority
) -> None:
    mixed = Identity(authority.member("a").cert, authority.member("b").key, authority.ca, authority.trust)
    async with commands(tmp_path) as running:
        code, told = await running.run(
            *("sidecar", "--member", "a", "--pool", pool_name, "--app", "127.0.0.1:1", "--etcd", etcd.endpoint),
            *map(str, flags(mixed)),
        )
    assert code == 2
    assert "cannot be used together" in told
    assert "b.key" in told
