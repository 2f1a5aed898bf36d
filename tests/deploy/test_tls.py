"""mTLS from end to end: certificates made as docs/security.md says, real processes, a real Envoy."""

import base64
import contextlib
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import pytest

from tests.harness.commands import ROOT, Commands, ask, commands, ready
from tests.harness.etcd import EtcdServer
from tests.harness.secrets import write_secret
from tests.harness.waiting import free_port, stays, until
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.heartbeat.heartbeat import METHOD, Beat
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import MemberState
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.tls.pem_files import PemFiles
from understudy.telemetry.tracing.ids import trace_seed
from understudy.telemetry.tracing.setup import start_telemetry
from understudy.xds.server import types, wire

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates: install it")

LINES = re.search(r"```bash\n(.*?)```", (ROOT / "docs/security.md").read_text(), re.DOTALL)


def make_certificates(directory: Path, pool: str, more: str = "") -> None:
    """Run the lines of docs/security.md for a pool of this name, and ``more`` after them."""
    directory.mkdir()
    assert LINES is not None
    lines = LINES[1].replace("spiffe://understudy/cart/", f"spiffe://understudy/{pool}/")
    done = subprocess.run(["bash", "-euc", lines + more], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass
class Secured:
    """One control server that demands certificates, and what else a test starts."""

    running: Commands
    certificates: Path
    etcd: str
    pool: str
    grpc: str
    http: str
    otlp_http: str

    def tls(self, name: str) -> list[str]:
        at = self.certificates
        return ["--tls-cert", f"{at / name}.pem", "--tls-key", f"{at / name}.key", "--tls-ca", f"{at / 'ca.pem'}"]

    def shown(self, name: str) -> grpc.ChannelCredentials:
        at = self.certificates
        return PemFiles(at / f"{name}.pem", at / f"{name}.key", at / "ca.pem").channel_credentials()

    async def envoy(self, node: str, certificate: str) -> str:
        """Start a front Envoy; returns where it listens."""
        listen = f"127.0.0.1:{free_port()}"
        await self.running.start(
            node,
            *("envoy", "--node", node, "--pool", self.pool, "--control", self.grpc, "--listen", listen),
            *("--admin", f"127.0.0.1:{free_port()}", "--concurrency", "1", "--drain", "0", *self.tls(certificate)),
        )
        return listen

    async def synced(self, node: str) -> bool:
        rows = [row for row in await ask(self.http, "/v1/xds") if row["node"] == node]
        return {row["state"] for row in rows if row["type_url"] in (types.CLUSTER, types.LISTENER)} == {"SYNCED"}


@contextlib.asynccontextmanager
async def secured(home: Path, etcd: EtcdServer, client: EtcdClient, pool: str) -> AsyncIterator[Secured]:
    make_certificates(home / "certificates", pool, "issue front-2 clientAuth DNS:front-2\n")
    await client.put(PoolKeys(pool).spec, PoolSpec(pool=pool, slots=8, durability="replicas").encode())
    async with commands(home) as running:
        world = Secured(
            running,
            home / "certificates",
            etcd.endpoint,
            pool,
            *(f"127.0.0.1:{free_port()}" for _ in range(3)),
        )
        await running.start(
            "control-1",
            *("control", "--name", "control-1", "--pool", pool, "--etcd", etcd.endpoint),
            *("--grpc", world.grpc, "--http", world.http, "--otlp-http", world.otlp_http, *world.tls("control-1")),
        )
        await ready(world.http)
        yield world


@pytest.fixture
async def world(tmp_path, etcd, client, pool_name):
    async with secured(tmp_path, etcd, client, pool_name) as made:
        yield made


async def test_envoy_and_sidecar_work_over_mtls_with_certificates_made_by_the_book(world: Secured):
    app = f"127.0.0.1:{free_port()}"
    await world.running.program("app", sys.executable, "-m", "http.server", "--bind", *app.split(":"))
    await world.running.start(
        "cart-1",
        *("sidecar", "--member", "cart-1", "--pool", world.pool, "--etcd", world.etcd, "--app", app),
        *("--app-health", "/", "--drain-seconds", "0", *world.tls("cart-1")),
        *("--session-api", f"127.0.0.1:{free_port()}", "--peer", f"127.0.0.1:{free_port()}"),
    )
    listen = await world.envoy("front-1", "front-1")

    async def alive() -> bool:
        members = (await ask(world.http, "/v1/status"))["members"]
        return [(member["member"], member["standing"]) for member in members] == [("cart-1", "alive")]

    await until(alive, 30, "the sidecar's heartbeat")
    await until(lambda: world.synced("front-1"), 30, "Envoy has its configuration")

    async def served() -> bool:
        async with aiohttp.ClientSession() as http, http.get(f"http://{listen}/") as answer:
            return answer.status == 200

    await until(served, 30, "a request through Envoy")


async def test_an_envoy_with_the_certificate_of_another_node_gets_nothing(world: Secured):
    await world.envoy("front-2", "front-1")
    credentials = world.shown("front-1")
    async with grpc.aio.secure_channel(world.grpc, credentials) as channel:
        call = channel.stream_stream(f"/{types.AGGREGATED_SERVICE}/DeltaAggregatedResources")()
        await call.write(wire.DeltaDiscoveryRequest(node={"id": "front-2"}, type_url=types.CLUSTER).SerializeToString())
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "not for node front-2" in await call.details()
    await until(
        lambda: "PERMISSION_DENIED" in world.running.log("front-2") or "not for node" in world.running.log("front-2"),
        40,
        "Envoy is told why",
    )
    await stays(lambda: ask_rows(world), 0.5, "no status of a node that was refused")


async def ask_rows(world: Secured) -> bool:
    return await ask(world.http, "/v1/xds") == []


async def test_a_member_cannot_beat_for_another_nor_an_envoy_for_a_member(world: Secured):
    for certificate, member, code in (
        ("cart-1", "cart-2", grpc.StatusCode.PERMISSION_DENIED),
        ("front-1", "cart-1", grpc.StatusCode.PERMISSION_DENIED),
        ("front-1", "front-1", grpc.StatusCode.PERMISSION_DENIED),
    ):
        async with grpc.aio.secure_channel(world.grpc, world.shown(certificate)) as channel:
            call = channel.stream_stream(METHOD)()
            await call.write(Beat(world.pool, member, "boot", MemberState.UP, 1).encode())
            assert (certificate, member, await call.code()) == (certificate, member, code)


async def test_spans_arrive_over_mtls(world: Secured):
    files = PemFiles(*(world.certificates / name for name in ("cart-1.pem", "cart-1.key", "ca.pem")))
    credentials = files.channel_credentials
    telemetry = start_telemetry("understudy-sidecar", "cart-1", endpoint=world.grpc, credentials=credentials)
    seed = trace_seed(world.pool, "takeover", "cart-9/boot")
    telemetry.failover(seed.traceparent).phase("claim", telemetry.now_ns() - 1000, telemetry.now_ns())
    try:
        await until(lambda: stored(world, seed.hex), 40, "the span is stored")
    finally:
        await telemetry.aclose()


async def test_spans_arrive_over_http_from_who_has_a_certificate_and_from_nobody_else(
    world: Secured, monkeypatch: pytest.MonkeyPatch
):
    at = world.certificates
    told = {"ENDPOINT": f"https://{world.otlp_http}", "PROTOCOL": "http/protobuf", "CERTIFICATE": at / "ca.pem"}
    shown = {"CLIENT_CERTIFICATE": at / "cart-1.pem", "CLIENT_KEY": at / "cart-1.key"}
    for number, variables in enumerate((told, told | shown)):
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", str(value))
        seed = trace_seed(world.pool, "takeover", f"cart-{number}/boot")
        telemetry = start_telemetry("understudy-sidecar", "cart-1")
        telemetry.failover(seed.traceparent).phase("claim", telemetry.now_ns() - 1000, telemetry.now_ns())
        if number:
            await until(lambda telemetry=telemetry: telemetry.counts.sent == 1, 40, "the span is taken")
        await telemetry.aclose(5.0)
        assert (telemetry.counts.sent, telemetry.counts.dropped) == ((1, 0) if number else (0, 1))
        assert await stored(world, seed.hex) is bool(number)


async def stored(world: Secured, trace: str) -> bool:
    return bool((await ask(world.http, f"/v1/traces/{trace}")).get("spans"))


async def test_certificates_renewed_under_a_new_authority_are_taken_up_by_running_processes(world: Secured):
    await world.envoy("front-1", "front-1")
    await until(lambda: world.synced("front-1"), 30, "Envoy has its configuration")
    renewed = world.certificates.with_name("renewed")
    make_certificates(renewed, world.pool)
    for name in ("front-1.key", "front-1.pem", "control-1.key", "control-1.pem", "ca.pem"):
        (renewed / name).replace(world.certificates / name)
    await world.running.kill("control-1")
    await world.running.start(
        "control-1",
        *("control", "--name", "control-1", "--pool", world.pool, "--etcd", world.etcd),
        *("--grpc", world.grpc, "--http", world.http, *world.tls("control-1")),
    )
    await until(lambda: world.synced("front-1"), 60, "the same Envoy is back, with its new certificate")


async def test_plain_text_beyond_loopback_needs_to_be_asked_for(tmp_path: Path, etcd, client, pool_name):
    async with commands(tmp_path) as running:
        where = ("--etcd", etcd.endpoint, "--http", f"127.0.0.1:{free_port()}", "--grpc", f"0.0.0.0:{free_port()}")
        code, told = await running.run("control", "--name", "control-1", "--pool", pool_name, *where)
        assert code == 2
        assert "not loopback" in told
        assert "--tls-cert" in told
        await client.put(PoolKeys(pool_name).spec, PoolSpec(pool=pool_name, slots=8).encode())
        await running.start("asked", "control", "--name", "control-1", "--pool", pool_name, *where, "--insecure")
        await ready(where[3])


async def test_two_of_the_three_files_are_wrong_use(tmp_path: Path):
    (tmp_path / "a.pem").touch()
    async with commands(tmp_path) as running:
        code, told = await running.run("control", "--name", "c", "--pool", "p", "--tls-cert", str(tmp_path / "a.pem"))
        assert code == 2
        assert "belong together" in told


async def test_an_operator_verifies_reads_and_backs_up_an_encrypted_pool_over_mtls(world: Secured, tmp_path: Path):
    app, api = (f"127.0.0.1:{free_port()}" for _ in range(2))
    peer = f"127.0.0.1:{free_port()}"
    keys = tmp_path / "session.keys"
    write_secret(keys, base64.b64encode(bytes(range(32))).decode() + "\n")
    await world.running.program("app", sys.executable, "-m", "http.server", "--bind", *app.split(":"))
    await world.running.start(
        "cart-1",
        *("sidecar", "--member", "cart-1", "--pool", world.pool, "--etcd", world.etcd, "--app", app),
        *("--app-health", "/", "--drain-seconds", "0", "--session-keys", str(keys), *world.tls("cart-1")),
        *("--session-api", api, "--peer", peer),
    )
    place = ("--pool", world.pool, "--etcd", world.etcd)

    async def written() -> bool:
        async with aiohttp.ClientSession() as http, http.put(f"http://{api}/v1/sessions/k", data=b"secret") as answer:
            return answer.status in (200, 201)

    await until(written, 30, "a session is written")
    as_anna = world.tls("anna")

    verified = await world.running.run("verify", *place, *as_anna, "--session-keys", str(keys), "-o", "json")
    without_keys = await world.running.run("verify", *place, *as_anna)
    without_certificate = await world.running.run("verify", *place, "--session-keys", str(keys))
    synced = await world.running.run("status", "--sync", *place, *as_anna, "-o", "json")
    backed_up = await world.running.run("backup", str(tmp_path / "pool.backup"), *place)

    assert verified[0] == 0, verified[1]
    assert '"same": true' in verified[1]
    assert without_keys[0] != 0
    assert "give --session-keys" in without_keys[1]
    assert without_certificate[0] == 1
    assert synced[0] == 0, synced[1]
    assert '"in_sync": true' in synced[1]
    assert backed_up[0] == 0, backed_up[1]
    assert b"secret" not in (tmp_path / "pool.backup").read_bytes()
    async with aiohttp.ClientSession() as http:
        shown = ssl.create_default_context(cafile=world.certificates / "ca.pem")
        shown.load_cert_chain(world.certificates / "anna.pem", world.certificates / "anna.key")
        shown.check_hostname = False  # a member's certificate names the member, not its address
        async with http.get(f"https://{peer}/metrics", ssl=shown) as answer:
            assert "understudy_sessions 1.0" in await answer.text()
