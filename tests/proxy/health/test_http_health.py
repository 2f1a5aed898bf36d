"""How the sidecar asks its application over HTTP: what counts as an answer, and which connection is used again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.harness.waiting import until
from understudy.proxy.health.http_health import HEAD_MOST, HttpHealth

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
PATIENCE = 20.0


@dataclass
class Application:
    """Answers each question on a connection with the next of ``answers``, the last one again and again."""

    answers: list[bytes]
    closes_after: int = 1_000_000
    asked: list[bytes] = field(default_factory=list)
    connections: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        here = 0
        while here < self.closes_after and (question := await self._question(reader)):
            self.asked.append(question)
            writer.write(self.answers[min(len(self.asked), len(self.answers)) - 1])
            here += 1
        writer.close()

    @staticmethod
    async def _question(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""


@asynccontextmanager
async def asking(
    application: Application, path: str = "/healthz", on_end: Callable[[], None] = lambda: None
) -> AsyncIterator[HttpHealth]:
    server = await asyncio.start_server(application.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    health = HttpHealth(f"127.0.0.1:{port}", path, on_end)
    try:
        yield health
    finally:
        health.close()
        server.close()
        for writer in application.connections:
            writer.transport.abort()


KEPT = {
    "a length": OK,
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "no chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "an interim answer first": b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK,
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", KEPT.values(), ids=KEPT.keys())
async def test_the_connection_is_used_again_after_a_whole_answer(answer: bytes):
    application = Application([answer])
    async with asking(application, "/healthz?deep=1") as health:
        assert [await health.ask(PATIENCE) for _ in range(5)] == [""] * 5
    assert len(application.connections) == 1
    assert application.asked[0].startswith(b"GET /healthz?deep=1 HTTP/1.1\r\nhost: 127.0.0.1:")


ONCE = {
    "it says so": b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 2\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "its end is not known": b"HTTP/1.1 200 OK\r\n\r\nok",
    "chunks are missing": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
    "content is missing": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
    "more came than was said": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nok",
}


@pytest.mark.parametrize("answer", ONCE.values(), ids=ONCE.keys())
async def test_another_connection_is_made_where_the_end_of_an_answer_is_not_plain(answer: bytes):
    application = Application([answer])
    async with asking(application) as health:
        assert [await health.ask(PATIENCE) for _ in range(3)] == [""] * 3
    assert len(application.connections) == 3


async def test_content_that_comes_later_is_no_answer_to_the_next_question():
    bad = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
    application = Application([b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n" + OK, bad])
    async with asking(application) as health:
        assert await health.ask(PATIENCE) == ""
        assert await health.ask(PATIENCE) == "answers 503"


@pytest.mark.parametrize("answer", [b"220 smtp.example\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * HEAD_MOST + b"\r\n"])
async def test_what_is_no_http_is_no_answer(answer: bytes):
    async with asking(Application([answer])) as health:
        with pytest.raises(OSError, match="what it sent is no answer"):
            await health.ask(PATIENCE)


async def test_an_application_that_ends_an_idle_connection_is_asked_on_another():
    application = Application([OK], closes_after=1)
    async with asking(application) as health:
        assert [await health.ask(PATIENCE) for _ in range(3)] == [""] * 3


async def test_silence_ends_the_connection_and_a_late_answer_counts_for_nothing():
    application = Application([b"", OK])
    async with asking(application) as health:
        with pytest.raises(TimeoutError):
            await health.ask(0.05)
        assert await health.ask(PATIENCE) == ""
    assert len(application.connections) == 2


async def test_the_end_of_a_connection_that_has_answered_for_a_while_is_told_at_once():
    ended: list[bool] = []
    application = Application([OK])
    async with asking(application, on_end=lambda: ended.append(True)) as health:
        await health.ask(PATIENCE)
        application.connections[0].transport.abort()
        await until(lambda: not health.connected, what="the end is seen")
        assert not ended  # it had answered once
        for _ in range(3):
            await health.ask(PATIENCE)
        application.connections[-1].transport.abort()
        await until(lambda: ended, what="the end is told")


async def test_nobody_listens():
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await HttpHealth(f"127.0.0.1:{port}", "/", lambda: None).ask(PATIENCE)
