"""Rights at the HTTP port of a real control server: two tenants, tokens and certificates, a file that changes."""

import asyncio
import contextlib
import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.harness.certificates import Authority
from tests.harness.etcd import running_etcd
from tests.harness.waiting import free_port, until
from tests.xds.control.control_pool import SPEC
from understudy.deploy.inspect.controls import AdminError, ask_control
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.tenants.keys import TenantKeys
from understudy.statesync.tenants.tenant import Tenant, encode_tenant
from understudy.statesync.tls.pem_files import PemFiles
from understudy.xds.control.server import StartError, serve_until
from understudy.xds.control.settings import ControlSettings

TENANTS = {"cart": "acme", "desk": "beta", "mail": None}
BEYOND = "vain"
"""A pool that somebody wrote to etcd past the quota of its tenant."""
PEOPLE = {"anna": {"acme": "operator"}, "bert": {"beta": "reader"}, "otto": {"*": "reader"}}


def token_of(name: str) -> str:
    return f"the-long-token-of-{name}"


def entries(*names: str) -> str:
    digests = {name: hashlib.sha256(token_of(name).encode()).hexdigest() for name in names}
    return json.dumps([{"name": n, "token": f"sha256:{digests[n]}", "tenants": PEOPLE[n]} for n in names])


@dataclass(frozen=True)
class Guarded:
    """A control server for three pools, of two tenants and of none."""

    http: str
    rights: Path
    authority: Authority

    def write_rights(self, text: str) -> None:
        written = self.rights.with_suffix(".new")
        written.write_text(text)
        written.chmod(0o600)
        written.replace(self.rights)

    async def get(self, path: str, name: str = "", certificate: str = "") -> tuple[int, str]:
        """What the server answers to somebody with a token, a certificate or neither."""
        context = ssl.create_default_context(cafile=self.authority.ca)
        if certificate:
            context.load_cert_chain(
                self.authority.directory / f"{certificate}.pem", self.authority.directory / f"{certificate}.key"
            )
        headers = {"Authorization": f"Bearer {token_of(name)}"} if name else {}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.http}{path}", headers=headers, ssl=context) as answer,
        ):
            return answer.status, await answer.text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    home = tmp_path_factory.mktemp("rights")
    authority = Authority(home / "authority")
    control = authority.control("control-1")
    authority.issue("carla", "URI:spiffe://understudy/cart/operator/carla")
    authority.issue("stranger", "URI:spiffe://understudy/cart/operator/stranger")
    guarded = Guarded(f"https://127.0.0.1:{free_port()}", home / "rights.yaml", authority)
    guarded.write_rights(entries(*PEOPLE))
    async with running_etcd() as etcd, EtcdClient(etcd.endpoints) as client:
        for pool, tenant in TENANTS.items():
            spec = SPEC.model_copy(update={"pool": pool, "tenant": tenant})
            await client.put(PoolKeys(pool).spec, spec.encode())
        await client.put(TenantKeys("small").record, encode_tenant(Tenant("small", pools=0)))
        beyond = SPEC.model_copy(update={"pool": BEYOND, "tenant": "small"})
        await client.put(PoolKeys(BEYOND).spec, beyond.encode())
        settings = ControlSettings(
            pools=(*TENANTS, BEYOND),
            name="control-1",
            etcd=EtcdSettings((etcd.endpoint,)),
            grpc="127.0.0.1:0",
            http=guarded.http.removeprefix("https://"),
            tls=PemFiles(control.cert, control.key, control.ca),
            http_tls=True,
            rights=guarded.rights,
        )
        stop = asyncio.Event()
        serving = asyncio.create_task(serve_until(settings, stop))
        try:

            async def ready() -> bool:
                with contextlib.suppress(aiohttp.ClientError):
                    return (await guarded.get("/readyz"))[0] == 200
                return False

            await until(ready, 60, "all pools are served")
            yield guarded
        finally:
            stop.set()
            await asyncio.wait_for(serving, 60)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_caller_sees_the_pools_of_its_tenants_and_no_word_of_others(server: Guarded) -> None:
    for path in ("/v1/pools", "/v1/targets"):
        for name, seen in {"anna": {"cart"}, "bert": {"desk"}, "otto": {"cart", "desk", "mail"}}.items():
            status, text = await server.get(path, name)
            assert (status, {pool for pool in TENANTS if pool in text}) == (200, seen), (name, path)
    for path in (
        "/v1/status",
        "/v1/table",
        "/v1/load",
        "/v1/records",
        "/v1/xds",
        "/v1/fronts",
        "/v1/traffic",
        "/v1/failovers",
        "/metrics",
    ):
        own, _ = await server.get(f"{path}?pool=cart", "anna")
        assert own == (404 if path == "/v1/table" else 200), path  # no member, so no table yet
        others, text = await server.get(f"{path}?pool=desk", "anna")
        none, like = await server.get(f"{path}?pool=nosuch", "anna")
        assert (others, others) == (404, none), path
        assert text.replace("desk", "nosuch") == like, "a pool of another tenant is like one that is not there"
        assert "mail" not in text
    assert (await server.get("/metrics", "anna"))[0] == 403
    assert (await server.get("/metrics", "otto"))[0] == 200
    for path in ("/v1/traces", "/v1/spans?since=0&until=1", "/v1/requests?since=0&until=1"):
        assert (await server.get(path, "anna"))[0] == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_beyond_the_quota_of_its_tenant_is_not_served_and_holds_nobody_up(server: Guarded) -> None:
    _, text = await server.get("/v1/pools", "otto")
    reasons = {row["pool"]: row["reason"] for row in json.loads(text)["pools"]}
    assert "small may have 0 pools, and has none" in reasons.pop(BEYOND)
    assert set(reasons.values()) == {""}


@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_known_token_or_certificate_only_the_health_paths_answer(server: Guarded) -> None:
    for path in ("/v1/pools", "/v1/status?pool=cart", "/metrics", "/v1/traces", "/nowhere"):
        assert (await server.get(path))[0] == 401
        assert (await server.get(path, "stranger"))[0] == 401
        assert (await server.get(path, certificate="stranger"))[0] == 401
    assert await server.get("/readyz") == (200, '{"status": "ready"}')
    assert (await server.get("/readyz?pool=cart"))[0] == 404
    assert (await server.get("/healthz"))[0] == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_the_file_is_followed_and_a_broken_one_changes_nothing(
    server: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        carla = {
            "name": "carla",
            "certificate": "spiffe://understudy/cart/operator/carla",
            "tenants": {"acme": "reader"},
        }
        server.write_rights(json.dumps([*json.loads(entries("bert")), carla]))
        assert (await server.get("/v1/pools", "anna"))[0] == 401
        assert (await server.get("/v1/pools", "bert"))[0] == 200
        status, text = await server.get("/v1/pools", certificate="carla")
        assert (status, "cart" in text, "desk" in text) == (200, True, False)

        server.write_rights("- name: nobody")
        assert (await server.get("/v1/pools", "bert"))[0] == 200

        for part, file in (("CA", "ca.pem"), ("CERT", "carla.pem"), ("KEY", "carla.key")):
            monkeypatch.setenv(f"UNDERSTUDY_TLS_{part}", str(server.authority.directory / file))
        assert (await ask_control(server.http, "/v1/status", "cart"))["pool"] == "cart"
        token = server.rights.with_name("token")
        token.touch(mode=0o600)
        token.write_text(f"{token_of('bert')}\n")
        monkeypatch.setenv("UNDERSTUDY_CONTROL_TOKEN_FILE", str(token))
        assert (await ask_control(server.http, "/v1/status", "desk"))["pool"] == "desk"
        token.write_text(token_of("anna"))
        with pytest.raises(AdminError, match="401: give a token that its rights file knows"):
            await ask_control(server.http, "/v1/status", "desk")
    finally:
        server.write_rights(entries(*PEOPLE))


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [("- name: anna", 0o600, "entry 1"), ("[", 0o600, "rights.yaml"), ("[]", 0o644, "others can read it")],
)
async def test_a_rights_file_that_cannot_be_used_is_named_at_the_start(
    tmp_path: Path, text: str, mode: int, told: str
) -> None:
    file = tmp_path / "rights.yaml"
    file.write_text(text)
    file.chmod(mode)
    settings = ControlSettings(pools=("cart",), name="c", grpc="127.0.0.1:0", http="127.0.0.1:0", rights=file)
    with pytest.raises(StartError, match=told) as caught:
        await serve_until(settings, asyncio.Event())
    assert "--rights" in str(caught.value)
