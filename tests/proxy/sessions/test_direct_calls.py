"""Session calls that skip aiohttp's router, and answers that skip its responses, are the same as all others."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.harness.waiting import free_port, until
from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.http.requests import MAX_BODY, READY_MOST
from understudy.proxy.sessions import session_api
from understudy.proxy.sessions.admission import SessionTokens
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.session_api import session_app
from understudy.statesync.http.http_port import DIRECT, Direct, serve

REPLIES = (
    Reply(200, {"ETag": '"2a"', "Understudy-Durability": "sync"}),
    Reply(201, {"ETag": '"2a"', "Content-Type": "text/plain"}, b"body"),
    Reply(200, {}, b"no type"),
    Reply(200, {"Content-Type": "text/plain"}, b"x" * (READY_MOST + 1)),
    Reply(204, {"ETag": '"2a"'}),
    Reply(304, {"ETag": '"2a"'}),
    Reply(200, {"X": "\u00e9"}, b""),
    Reply(299, {"ETag": '"2a"'}),
    problem(503, "overloaded", "later", retry_after=1),
)
HEAD = "Host: x\r\n"


class Service:
    """A session service that answers ``reply`` to every call, and keeps the calls."""

    def __init__(self, reply: Reply) -> None:
        self.reply: Reply | None = reply
        self.calls: list[Call] = []

    def get_now(self, _: Call) -> Reply | None:
        return None

    async def handle(self, call: Call) -> Reply:
        self.calls.append(call)
        if self.reply is None:
            raise RuntimeError("a fault")
        return self.reply


@asynccontextmanager
async def served(service: Service, *, direct: bool = True, tokens: SessionTokens | None = None) -> AsyncIterator[int]:
    """The session API on a port of its own; without ``direct`` every call is routed."""
    app = session_app(service, lambda: ({}, True), tokens)  # type: ignore[arg-type]
    if not direct:
        app[DIRECT] = Direct(lambda _: False, app[DIRECT].handler)
    async with AsyncExitStack() as stack:
        port = free_port()
        await web.TCPSite(await serve(stack, app), "127.0.0.1", port).start()
        yield port


async def exchanged(port: int, *requests: str) -> str:
    """All answers on one connection to these requests, the last of which closes it; without their dates."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("".join(requests).encode())
    answers = (await asyncio.wait_for(reader.read(), 40)).decode()
    writer.close()
    return re.sub(r"Date: [^\r]+ GMT\r\n", "Date\r\n", answers)


def call(method: str, path: str, headers: str = "", body: str = "body") -> str:
    content = f"Content-Length: {len(body)}\r\n\r\n{body}" if method in ("PUT", "PATCH", "POST") else "\r\n"
    return f"{method} {path} HTTP/1.1\r\n{HEAD}{headers}{content}"


LAST = call("GET", "/healthz", "Connection: close\r\n")


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: f"{reply.status}-{len(reply.body)}")
async def test_an_answer_is_the_same_with_and_without_the_router(reply: Reply) -> None:
    requests = [call(method, "/v1/sessions/abc") for method in ("PUT", "GET", "PATCH", "DELETE", "HEAD", "OPTIONS")]
    requests += [call("PUT", "/v1/sessions/abc", "Expect: 100-continue\r\n")]
    answers, services = [], []
    for direct in (True, False):
        service = Service(reply)
        async with served(service, direct=direct) as port:
            answers.append(await exchanged(port, *requests, LAST))
        services.append([(one.method, one.key, dict(one.headers), one.body) for one in service.calls])
    assert answers[0] == answers[1]
    assert answers[0].count("HTTP/1.1 ") == len(requests) + 2  # one more for what Expect asks
    assert services[0] == services[1]


@pytest.mark.parametrize(
    "path", ["a%62c", "abc?x=1", "abc/refusal", ".", "..", "a/b", "", "%2e%2e", "a" * 257, "a\u00e9", "a:b~c._-"]
)
async def test_a_path_means_the_same_with_and_without_the_router(path: str) -> None:
    answers, keys = [], []
    for direct in (True, False):
        service = Service(Reply(200))
        async with served(service, direct=direct) as port:
            answers.append(await exchanged(port, call("PUT", f"/v1/sessions/{path}"), LAST))
        keys.append([one.key for one in service.calls])
    assert (answers[0], keys[0]) == (answers[1], keys[1])


async def test_a_client_that_closes_gets_its_answer_and_the_end_of_the_connection() -> None:
    async with served(Service(Reply(200))) as port:
        closing = await exchanged(port, call("PUT", "/v1/sessions/abc", "Connection: close\r\n"))
        old = await exchanged(port, call("PUT", "/v1/sessions/abc").replace("HTTP/1.1", "HTTP/1.0"))
    assert closing.startswith("HTTP/1.1 200 OK\r\n")
    assert "Connection: close\r\n" in closing
    assert old.startswith("HTTP/1.0 200 OK\r\n")


async def test_the_checks_come_before_a_direct_call(tmp_path: Path) -> None:
    secret = tmp_path / "tokens"
    secret.write_text("0123456789abcdef\n")
    secret.chmod(0o600)
    service = Service(Reply(200))
    async with served(service, tokens=SessionTokens(secret)) as port:
        path = "/v1/sessions/abc"
        without = await exchanged(port, call("PUT", path), LAST)
        token = "Authorization: Bearer 0123456789abcdef\r\n"
        page = await exchanged(port, call("PUT", path, f"{token}Origin: http://x\r\n"))
        packed = await exchanged(port, call("PUT", path, f"{token}Content-Encoding: gzip\r\n"))
        assert not service.calls
        good = await exchanged(port, call("PUT", path, token), LAST)
    assert [one[9:12] for one in (without, page, packed, good)] == ["401", "403", "415", "200"]


async def test_a_fault_in_a_direct_call_is_a_problem_and_logged_without_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(Reply(200))
    service.reply = None
    with caplog.at_level(logging.ERROR):
        async with served(service) as port:
            answer = await exchanged(port, call("PUT", "/v1/sessions/very-secret"), LAST)
    assert answer.startswith("HTTP/1.1 500 ")
    assert "problems/internal" in answer
    assert "very-secret" not in "".join(record.getMessage() for record in caplog.records)


async def test_a_header_of_several_lines_is_never_sent() -> None:
    async with served(Service(Reply(200, {"X": "a\r\nY: b"}))) as port:
        answer = await exchanged(port, call("PUT", "/v1/sessions/abc"), LAST)
    assert "Y: b" not in answer


async def test_a_body_that_comes_in_parts_is_the_same_as_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    body_of = session_api._body_of

    async def noted(request: web.Request) -> bytes:
        begun.append(request.path)
        return await body_of(request)

    monkeypatch.setattr(session_api, "_body_of", noted)
    service = Service(Reply(200))
    async with served(service) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(call("PUT", "/v1/sessions/abc", body="whole").encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(call("PUT", "/v1/sessions/abc", body="in two parts").removesuffix("two parts").encode())
        await until(lambda: len(begun) == 2, what="the sidecar waits for the rest of the body")
        writer.write(b"two parts")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(call("PUT", "/v1/sessions/abc", body="").encode())
        await reader.readuntil(b"\r\n\r\n")
        chunks = "Transfer-Encoding: chunked\r\n\r\n2\r\nin\r\n7\r\n chunks\r\n0\r\n\r\n"
        writer.write(f"PUT /v1/sessions/abc HTTP/1.1\r\n{HEAD}{chunks}".encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(call("PUT", "/v1/sessions/abc", body="x" * (MAX_BODY + 1)).encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
    assert [one.body for one in service.calls] == [b"whole", b"in two parts", b"", b"in chunks"]
