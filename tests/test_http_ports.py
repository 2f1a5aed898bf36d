"""Hostile HTTP at every port: no body is decompressed, nothing is answered with 500, nothing fills the log."""

import ast
import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from aiohttp import StreamReader, web
from prometheus_client import CollectorRegistry

from tests.deploy.kubernetes.injection.harness import PLAIN
from tests.harness.secrets import write_secret
from understudy.deploy.console.routes import add_console
from understudy.deploy.console.security import ConsoleSettings
from understudy.deploy.examples.cart import make_app
from understudy.deploy.kubernetes.webhook.server import Webhook
from understudy.proxy.health.check_registry import CheckRegistry
from understudy.proxy.http.problems import Reply
from understudy.proxy.member.identity import MemberIdentity
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.ownership.drain import DrainApi
from understudy.proxy.peers.peer_api import peer_app
from understudy.proxy.peers.sync_api import SyncApi, metrics_app
from understudy.proxy.sessions.admission import SessionTokens
from understudy.proxy.sessions.call import Call, write_of
from understudy.proxy.sessions.session_api import add_forwarded_calls, session_app
from understudy.proxy.sidecar.checks_api import ChecksApi
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.http.headers import ADMIN_HEADER, ADMIN_VALUE
from understudy.statesync.http.http_port import serve
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.tls.identity import Trust
from understudy.telemetry.receiver.otlp_http import OPENED, otlp_application
from understudy.telemetry.receiver.otlp_service import OtlpService
from understudy.telemetry.store.store import SpanStore
from understudy.xds.control.admin import Admin
from understudy.xds.control.http_extension import HttpParts

ROOT = Path(__file__).parents[1]
PACKAGES = ("xds", "proxy", "statesync", "telemetry", "deploy")
TOKEN = "0123456789abcdef"
INFLATED = 8 * 1024 * 1024
METHODS = ("POST", "PUT", "PATCH", "DELETE", "GET")


# -- the applications, as their processes make them --


def session_side(path: Path) -> web.Application:
    app = session_app(MagicMock(), lambda: ({"state": "UP", "reason": ""}, True), tokens(path))
    ChecksApi(CheckRegistry(), list, lambda: None).add_to(app)
    return app


def tokens(path: Path) -> SessionTokens:
    return SessionTokens(write_secret(path / "tokens", TOKEN))


def without_tokens(drain: MagicMock) -> web.Application:
    app = session_app(MagicMock(), lambda: ({"state": "UP", "reason": ""}, True))
    ChecksApi(CheckRegistry(), list, lambda: None).add_to(app)
    DrainApi(drain, lambda: False).add_to(app)
    return app


def peer_side(_: Path, *, certificates: bool = True) -> web.Application:
    pool = PoolView(MemberIdentity("a", "a1", PoolKeys("cart")))
    app = peer_app(pool, MagicMock(), trust=Trust("cart") if certificates else None)
    add_forwarded_calls(app, MagicMock())
    SyncApi("a", MagicMock(), lambda: ({}, True), MagicMock(), lambda _: (b"", "text/plain")).add_to(app)
    return app


def admin(_: Path) -> web.Application:
    return Admin(name="c", pools=MagicMock(), store=MagicMock(), registry=CollectorRegistry()).app()


def console(path: Path) -> web.Application:
    app = admin(path)
    parts = HttpParts("c", MagicMock(), (EtcdSettings(),), MagicMock())
    add_console(app, parts, ConsoleSettings("127.0.0.1:18001"))
    return app


def otlp(_: Path) -> web.Application:
    return otlp_application(OtlpService(SpanStore(":memory:"), asyncio.get_running_loop().time))


@dataclass(frozen=True)
class Port:
    """An application, the file that makes it, and paths that it has."""

    file: str
    make: Callable[[Path], web.Application]
    paths: tuple[str, ...]
    opens: tuple[str, ...] = ()
    example: bool = False


PORTS = {
    "session API": Port(
        "proxy/sessions/session_api.py", session_side, ("/v1/sessions", "/v1/sessions/k", "/v1/checks/c")
    ),
    "peer API": Port("proxy/peers/peer_api.py", peer_side, ("/peer/v1/sessions/k", "/peer/v1/slots/digest")),
    "metrics of a sidecar": Port("proxy/peers/sync_api.py", lambda _: metrics_app(lambda _: (b"", "")), ("/metrics",)),
    "control HTTP": Port("xds/control/admin.py", admin, ("/v1/traces", "/healthz")),
    "console": Port("deploy/console/routes.py", console, ("/console/", "/console/cart/act", "/console/cart/explain")),
    "OTLP/HTTP": Port("telemetry/receiver/otlp_http.py", otlp, ("/v1/traces", "/v1/logs"), opens=OPENED),
    "injector": Port("deploy/kubernetes/webhook/server.py", lambda _: Webhook(PLAIN).app(), ("/mutate", "/readyz")),
    "metrics of the injector": Port(
        "deploy/kubernetes/webhook/server.py", lambda _: Webhook(PLAIN).metrics_app(), ("/metrics",)
    ),
    "example": Port(
        "deploy/examples/cart.py", lambda _: make_app("http://127.0.0.1:1", "a"), ("/cart", "/cart/items"), example=True
    ),
}
OURS = [name for name, port in PORTS.items() if not port.example]


@asynccontextmanager
async def serving(app: web.Application, port: Port) -> AsyncIterator[int]:
    """The TCP port on which an application is served as its process does it."""
    async with AsyncExitStack() as stack:
        if port.example:
            runner = web.AppRunner(app)  # what web.run_app makes
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
        else:
            runner = await serve(stack, app, opens=port.opens)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]


ADMIN = f"{ADMIN_HEADER}: {ADMIN_VALUE}"


async def ask(port: int, line: str, *headers: str | bytes, body: bytes = b"", length: str = "") -> tuple[int, str]:
    """The status and the text of the answer to one request on a connection of its own."""
    head = [f"{line} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {length or len(body)}", *headers]
    request = b"\r\n".join(one.encode() if isinstance(one, str) else one for one in head)
    return await send(port, request + b"\r\n\r\n" + body)


async def send(port: int, request: bytes) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, text = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), text


@pytest.fixture
def taken_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the parts of request bodies that servers of this process take into memory."""
    sizes: list[int] = []
    feed = StreamReader.feed_data

    def feed_data(self: StreamReader, data: bytes, *rest: object) -> object:
        sizes.append(len(data))
        return feed(self, data, *rest)

    monkeypatch.setattr(StreamReader, "feed_data", feed_data)
    return sizes


# -- bombs --

BOMBS = {"gzip": gzip.compress(bytes(INFLATED)), "deflate": zlib.compress(bytes(INFLATED))}


@pytest.mark.parametrize("name", PORTS)
async def test_no_port_decompresses_a_body_whatever_it_answers(name: str, tmp_path: Path, taken_in: list[int]) -> None:
    port, sent = PORTS[name], 0
    async with serving(port.make(tmp_path), port) as number:
        for method in METHODS:
            for path in ("/", "/nothing", *port.paths):
                for coding, bomb in BOMBS.items():
                    status, text = await ask(number, f"{method} {path}", f"Content-Encoding: {coding}", body=bomb)
                    sent += len(bomb)
                    assert 400 <= status < 500, (method, path, text)
                    assert status == 415 or coding in port.opens, (method, path, text)
    assert sum(taken_in) <= sent


async def test_a_server_that_aiohttp_makes_by_itself_does_decompress(taken_in: list[int]) -> None:
    """So that the test above is known to measure what it should."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        number = runner.addresses[0][1]
        assert (await ask(number, "POST /", "Content-Encoding: gzip", body=BOMBS["gzip"]))[0] == 404
    finally:
        await runner.cleanup()
    assert sum(taken_in) > 10 * len(BOMBS["gzip"])


@pytest.mark.parametrize("coding", ["GZIP", "identity, gzip", "br", "zstd", "x-unknown"])
async def test_any_coding_is_refused_before_the_token_is_asked_for(coding: str, tmp_path: Path) -> None:
    port = PORTS["session API"]
    async with serving(port.make(tmp_path), port) as number:
        status, text = await ask(number, "PUT /v1/sessions/k", f"Content-Encoding: {coding}", body=b"x")
        assert status == 415
        assert json.loads(text)["type"].endswith("/encoded-body")
        assert (await ask(number, "PUT /v1/sessions/k", "Content-Encoding: identity", body=b"x"))[0] == 401


def calls_in(path: Path) -> set[str]:
    """The names of all functions that a file which knows aiohttp calls, without what stands before the last dot."""
    text = path.read_text()
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)] if "aiohttp" in text else []
    return {getattr(one, "attr", getattr(one, "id", "")) for one in calls}


def test_every_application_is_served_by_the_one_helper_and_is_in_this_test() -> None:
    made, served = set(), set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        name, calls = str(path.relative_to(ROOT)), calls_in(path)
        if "Application" in calls:
            made.add(name)
        if calls & {"AppRunner", "ServerRunner", "run_app", "make_handler"}:
            served.add(name)
    assert made == {port.file for port in PORTS.values()}
    assert served == {"statesync/http/http_port.py", *(port.file for port in PORTS.values() if port.example)}


# -- what is not as HTTP has it --

JSON = b"Host: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
CHUNKED = b"POST %s HTTP/1.1\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n"


@pytest.mark.parametrize("name", OURS)
async def test_malformed_requests_get_a_4xx_and_leave_no_traceback(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = PORTS[name]
    path = port.paths[0]
    async with serving(port.make(tmp_path), port) as number:
        answers = [
            await ask(number, f"GET {path}", b"Authorization: Bearer \xff"),
            await ask(number, f"POST {path}", b"Idempotency-Key: \xff", b"Content-Type: \xff"),
            await send(number, b"GET /\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            await ask(number, f"POST {path}", length="x"),
            await send(number, CHUNKED % path.encode()),
            await send(number, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
            await ask(number, f"POST {path}", "Content-Type: application/json", length="9" * 5000),
        ]
    assert all(400 <= status < 500 for status, _ in answers), answers
    assert [one for one in caplog.records if one.exc_info or one.levelno >= logging.WARNING] == []


async def test_numbers_that_are_none_are_refused_by_the_session_and_the_peer_api(tmp_path: Path) -> None:
    port = PORTS["session API"]
    async with serving(without_tokens(MagicMock()), port) as number:
        for deadline in ("NaN", "1e400", "Infinity", "9" * 5000, "[" * 100_000):
            body = f'{{"deadline_seconds": {deadline}}}'.encode()
            assert (await ask(number, "PUT /v1/checks/c", ADMIN, body=body))[0] == 400
        for wait in ("1e400", "nan", "9" * 5000):
            assert (await ask(number, f"POST /v1/drain?wait={wait}", ADMIN))[0] == 400
    async with serving(peer_side(tmp_path, certificates=False), port) as number:
        for body in ('{"slots": [1000000000], "revision": 1}', '{"slots": [1], "revision": 1e400}', "[" * 100_000):
            for path in ("/peer/v1/handover/prepare", "/peer/v1/handover/activate", "/peer/v1/slots/digest"):
                if not (path.endswith("prepare") and "1e400" in body):  # it has no revision
                    assert (await ask(number, f"POST {path}", body=body.encode()))[0] == 400, (path, body)
        for slots in ('{"1000000000": 1}', '{"1": NaN}', '{"1": 1e400}', '{"1": 99999999999999999999}', "[]"):
            body = f'{{"member": "b", "boot": "1", "slots": {slots}}}'
            assert (await ask(number, "POST /peer/v1/take", body=body.encode()))[0] == 400, slots


def test_a_token_that_is_no_text_is_not_accepted(tmp_path: Path) -> None:
    assert not tokens(tmp_path).accepts("Bearer \udcff")


@pytest.mark.parametrize("ttl", ["9" * 5000, "0", "-1", "1e400", "NaN", "31536001"])
def test_a_ttl_that_is_none_is_refused(ttl: str) -> None:
    reply = write_of(Call("PUT", "k", {"understudy-ttl": ttl}))
    assert isinstance(reply, Reply)
    assert reply.status == 400


@pytest.mark.parametrize("limit", ["9" * 5000, "0", "-1", "1e3", "\u0661"])
async def test_a_limit_that_is_none_is_refused_by_control_http(limit: str, tmp_path: Path) -> None:
    port = PORTS["control HTTP"]
    async with serving(port.make(tmp_path), port) as number:
        assert (await ask(number, f"GET /v1/traces?limit={limit}"))[0] == 400


# -- pages --


@pytest.mark.parametrize(
    "header", ["Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
)
async def test_a_browsers_page_cannot_drain_a_member(header: str) -> None:
    drain = MagicMock()
    drain.outstanding.return_value = ""
    drain.result.return_value = (True, "")
    port = PORTS["session API"]
    async with serving(without_tokens(drain), port) as number:
        status, text = await ask(number, "POST /v1/drain", ADMIN, header)
        assert (status, json.loads(text)["type"].rpartition("/")[2]) == (403, "cross-site")
        assert not drain.begin.called
        assert (await ask(number, "GET /v1/status", header))[0] == 200
        assert (await ask(number, "POST /v1/drain", ADMIN))[0] == 200
        assert drain.begin.called
