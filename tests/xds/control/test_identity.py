"""mTLS on the xDS port: whose certificate speaks for which node, and certificates renewed in place."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.xds.server.client import ADS, Stream
from understudy.statesync.pool.front_node import cluster_of_front
from understudy.statesync.tls.identity import Trust
from understudy.statesync.tls.pem_files import PemFiles
from understudy.xds.control.identity import Clients, refuse_front, refuse_several, server_credentials
from understudy.xds.server import types
from understudy.xds.server.ads import AdsServer
from understudy.xds.server.cache import ResourceCache
from understudy.xds.server.wire import Node

CLIENTS = Clients(Trust("cart"))


async def openssl(*arguments: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(
        "openssl", *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cert, self.key = directory / "ca.pem", directory / "ca.key"

    async def begin(self) -> None:
        await openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"),
            *("-subj", "/CN=test authority", "-keyout", self.key, "-out", self.cert),
        )

    async def issue(self, name: str, san: str) -> tuple[Path, Path]:
        cert, key, request = (self.directory / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={san}\n")
        await openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        await openssl(
            *("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial"),
            *("-days", "30", "-extfile", extensions, "-out", cert),
        )
        return cert, key


class Secured:
    def __init__(self, authority: Authority, tls: PemFiles, port: int) -> None:
        self.authority, self.tls, self.port = authority, tls, port

    @contextlib.asynccontextmanager
    async def stream(self, node: str, client: tuple[Path, Path] | None) -> AsyncIterator[Stream]:
        cert, key = (part.read_bytes() for part in client) if client else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.cert.read_bytes(), key, cert)
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials) as channel:
            yield Stream(channel, f"{ADS}/DeltaAggregatedResources", delta=True, node=node)


@contextlib.asynccontextmanager
async def secured(directory: Path) -> AsyncIterator[Secured]:
    authority = Authority(directory)
    await authority.begin()
    cert, key = await authority.issue("server", "IP:127.0.0.1")
    cache = ResourceCache()
    cache.ready()
    tls = PemFiles(cert, key, authority.cert)
    server = AdsServer(cache, identify=CLIENTS.refuse_node)
    port = await server.start("127.0.0.1:0", server_credentials(tls))
    try:
        yield Secured(authority, tls, port)
    finally:
        await server.stop(0.2)


async def test_rule_27_a_certificate_speaks_for_its_own_node_only(tmp_path: Path):
    async with secured(tmp_path) as world:
        mine = await world.authority.issue("front-1", "DNS:front-1")
        async with world.stream("front-1", mine) as stream:
            await stream.ask(types.CLUSTER)
            assert (await stream.receive()).type_url == types.CLUSTER
        async with world.stream("front-2", mine) as stream:
            await stream.ask(types.CLUSTER)
            code, text = await stream.status()
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "front-1" in text
            assert "front-2" in text


async def test_rule_27_without_a_certificate_there_is_no_stream(tmp_path: Path):
    async with secured(tmp_path) as world, world.stream("front-1", None) as stream:
        assert (await stream.status())[0] is grpc.StatusCode.UNAVAILABLE


async def test_certificates_are_renewed_without_a_restart(tmp_path: Path):
    async with secured(tmp_path) as world:
        old_authority = world.authority.cert.read_bytes()
        await world.authority.begin()
        assert world.authority.cert.read_bytes() != old_authority
        cert, key = await world.authority.issue("renewed", "IP:127.0.0.1")
        cert.replace(world.tls.cert)
        key.replace(world.tls.key)
        client = await world.authority.issue("front-1", "DNS:front-1")
        async with world.stream("front-1", client) as stream:
            await stream.ask(types.CLUSTER)
            assert (await stream.receive()).type_url == types.CLUSTER


@pytest.mark.parametrize(
    ("node", "names", "allowed"),
    [
        ("front-1", [b"front-1"], True),
        ("front-1", [b"other", b"front-1"], True),
        ("front-1", [b"spiffe://understudy/cart/node/front-1"], True),
        ("front-1", [b"spiffe://understudy/cart/member/front-1"], False),
        ("front-1", [b"spiffe://understudy/other/node/front-1"], False),
        ("front-1", [b"spiffe://cluster.local/cart/node/front-1"], False),
        ("front-1", [b"spiffe://cluster.local/ns/shop/node/front-1"], False),
        ("spiffe://evil/x/node/y", [b"spiffe://evil/x/node/y"], False),
        ("front-1", [b"https://evil/node/front-1"], False),
        ("front-1", [b"front-10"], False),
        ("front-1", [], False),
        ("front-1", [b"\xff"], False),
        ("", [b""], False),
        ("", [b"spiffe://understudy/cart/node/"], False),
    ],
)
def test_rule_27_which_names_speak_for_a_node(node: str, names: list[bytes], allowed: bool):
    context = {"x509_subject_alternative_name": names}
    assert (CLIENTS.refuse_node(Node(node), context) is None) is allowed


@pytest.mark.parametrize(
    ("pools", "names", "allowed"),
    [
        ([], [b"spiffe://understudy/fronts/front-1"], True),
        (["cart", "desk"], [b"spiffe://understudy/fronts/front-1"], True),
        (["cart", "desk"], [b"spiffe://understudy/cart/node/front-1", b"spiffe://understudy/desk/node/front-1"], True),
        (["cart", "desk"], [b"spiffe://understudy/cart/node/front-1"], False),
        ([], [b"spiffe://understudy/cart/node/front-1"], False),
        ([], [b"spiffe://other/fronts/front-1"], False),
        ([], [b"spiffe://understudy/fronts/front-2"], False),
        (["cart"], [b"front-1"], False),
        ([], [], False),
    ],
)
def test_which_names_speak_for_a_front_of_several_pools(pools: list[str], names: list[bytes], allowed: bool):
    context = {"x509_subject_alternative_name": names}
    assert (refuse_front("understudy", pools, Node("front-1"), context) is None) is allowed


def test_a_control_server_of_one_pool_refuses_a_front_of_several():
    assert "--all-pools" in (refuse_several("cart", None, Node("front-1", cluster_of_front([])), {}) or "")
    assert refuse_several("cart", None, Node("front-1", "cart"), {}) is None
