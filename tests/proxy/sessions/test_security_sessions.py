"""Who may use the session API, and that what sessions hold stays out of logs, spans and errors."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.harness.commands import ROOT, ask, commands, ready
from tests.harness.etcd import EtcdServer
from tests.harness.secrets import write_secret
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import free_port, until
from understudy.proxy.sessions.admission import SessionTokens
from understudy.statesync.pool.records import MemberState
from understudy.statesync.tls.followed_file import BadFile

TOKEN = "0123456789abcdef-old"
NEXT = "0123456789abcdef-new"
MARKER = "XyzzyMarker"
ALONE = (("a",),)
SHARED = (("a", "b"), ("b", "a"))


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str, tmp_path: Path) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        pool.logs = tmp_path
        yield pool


async def test_without_its_token_the_session_api_says_no_more_than_that_it_lives(
    pool: SidecarPool, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    write_secret(tokens, f"# of the shop\n{TOKEN}\n")
    pool.flags = lambda _: ["--session-token-file", tokens]
    await pool.start("a")
    await pool.write_table(ALONE)
    bearer = f"Bearer {TOKEN}"

    async def stored() -> bool:
        return (await pool.call("a", "PUT", "/k", "secret", Authorization=bearer))[0] in (200, 201)

    await until(stored, 40, "a write with the token")
    for shown in ({}, {"Authorization": f"Bearer {NEXT}"}, {"Authorization": f"Basic {TOKEN}"}):
        for method in ("GET", "PUT", "DELETE"):
            status, headers, body = await pool.call("a", method, "/k", "x", **shown)
            assert status == 401
            assert headers["www-authenticate"].startswith("Bearer")
            assert json.loads(body)["type"].endswith("/unauthorized")
    async with aiohttp.ClientSession() as http:
        for path, expected in (("/healthz", 200), ("/readyz", 200), ("/v1/status", 401), ("/v1/sessions", 401)):
            async with http.get(f"http://{pool.members['a'].api}{path}") as answer:
                assert (path, answer.status) == (path, expected)
    assert (await pool.call("a", "GET", "/k", Authorization=bearer))[2] == b"secret"

    write_secret(tokens.with_suffix(".new"), f"{TOKEN}\n{NEXT}\n")
    tokens.with_suffix(".new").replace(tokens)
    for token in (TOKEN, NEXT):
        assert (await pool.call("a", "GET", "/k", Authorization=f"Bearer {token}"))[0] == 200
    assert TOKEN not in pool.log("a")


@pytest.mark.parametrize("content", ["", "# nothing\n", "short\n", f"{TOKEN}\nshort\n"])
def test_a_file_without_good_tokens_is_refused(tmp_path: Path, content: str) -> None:
    write_secret(tmp_path / "tokens", content)
    with pytest.raises(BadFile, match="16 characters"):
        SessionTokens(tmp_path / "tokens")


def test_a_file_that_is_no_text_is_refused_and_leaves_the_tokens_in_use(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    write_secret(path, TOKEN)
    tokens = SessionTokens(path)
    path.write_bytes(b"\xff" * 40)
    assert tokens.accepts(f"Bearer {TOKEN}")
    with pytest.raises(BadFile, match="no text"):
        SessionTokens(path)


@pytest.mark.parametrize("mode", ["0660", "0600"])
async def test_a_unix_socket_has_the_permissions_that_were_asked_for(
    pool: SidecarPool, tmp_path: Path, mode: str
) -> None:
    path = tmp_path / "api"
    async with commands(tmp_path) as running:
        await running.start(
            "sidecar",
            *("sidecar", "--member", "a", "--pool", pool.keys.pool, "--app", "127.0.0.1:1"),
            *("--etcd", pool.etcd.endpoint, "--peer", f"127.0.0.1:{free_port()}"),
            *("--session-api", f"unix:{path}", "--session-socket-mode", mode),
        )

        async def alive() -> bool:
            connector = aiohttp.UnixConnector(str(path))
            async with aiohttp.ClientSession(connector=connector) as http, http.get("http://s/healthz") as answer:
                return answer.status == 200

        await until(alive, 40, "the sidecar answers on its socket")
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)


async def test_the_example_shows_its_token(pool: SidecarPool, tmp_path: Path) -> None:
    write_secret(tmp_path / "tokens", TOKEN)
    pool.flags = lambda _: ["--session-token-file", tmp_path / "tokens"]
    await pool.start("a")
    await pool.settle(*ALONE)
    async with commands(tmp_path) as running:
        for name, token, expected in (("with", TOKEN, 201), ("without", "", 502)):
            port = free_port()
            told = {"UNDERSTUDY_URL": f"http://{pool.members['a'].api}", "UNDERSTUDY_TOKEN": token}
            await running.program(
                name,
                *("/usr/bin/env", *(f"{key}={value}" for key, value in told.items())),
                *(sys.executable, "-m", "understudy.deploy.examples.cart", "--port", str(port)),
            )
            await until(partial(new_cart_is, port, expected), 40, f"the example answers {expected}")


async def new_cart_is(port: int, expected: int) -> bool:
    async with aiohttp.ClientSession() as http, http.post(f"http://127.0.0.1:{port}/cart") as answer:
        assert answer.status == expected
        return True


# -- nothing leaks --


async def test_what_a_session_holds_is_in_no_log_no_span_and_no_error(pool: SidecarPool, tmp_path: Path) -> None:
    grpc, http, traces = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", tmp_path / "traces.db"
    async with commands(tmp_path) as running:
        await running.start(
            "control-1",
            *("--log-level", "debug", "control", "--name", "control-1", "--pool", pool.keys.pool),
            *("--etcd", pool.etcd.endpoint, "--grpc", grpc, "--http", http, "--traces", str(traces)),
        )
        await ready(http)
        pool.flags = lambda _: ["--drain-seconds", 0]
        await pool.start("a", "b")
        await until(lambda: all_owned(pool), 30, "all slots are owned")

        answers = [body async for body in trouble(pool)]
        dead = await pool.record("a")
        assert dead is not None
        assert dead.state is MemberState.UP
        pool.kill("a")
        for number in range(8):
            key = f"k{number}-{MARKER}"
            status, _, body = await pool.call("b", "GET", f"/{key}")
            assert (status, MARKER.encode() in body) == (200, True)
        await until(lambda: told(http), 30, "the failover's trace")
        shown = json.dumps([await ask(http, f"/v1/traces/{one}") for one in await told(http)])
        status_text = json.dumps(await ask(http, "/v1/status"))
        control_log = running.log("control-1")
    stored = written(tmp_path)

    assert "DEBUG" in pool.log("a")
    for where, text in (
        ("a's log", pool.log("a")),
        ("b's log", pool.log("b")),
        ("the control server's log", control_log),
        ("its traces", shown),
        ("its status", status_text),
        ("its trace store", stored.decode(errors="replace")),
        *((f"answer {number}", body.decode(errors="replace")) for number, body in enumerate(answers)),
    ):
        assert MARKER not in text, f"{where}: {text[max(text.find(MARKER) - 300, 0) :][:500]}"


def written(directory: Path) -> bytes:
    """The trace store's files as they are on disk."""
    return b"".join(file.read_bytes() for file in directory.glob("traces.db*"))


async def all_owned(pool: SidecarPool) -> bool:
    return len(await pool.owners()) == pool.spec.slots


async def told(http: str) -> list[str]:
    listed = await ask(http, "/v1/traces")
    return [one["trace_id"] for one in listed["traces"]]


async def trouble(pool: SidecarPool) -> AsyncIterator[bytes]:
    """Write sessions with the marker in them, and provoke every error that looks at content; yields the errors."""
    patch = "application/merge-patch+json"
    for number in range(8):
        key = f"/k{number}-{MARKER}"
        body = json.dumps({"note": MARKER, "n": number})
        once = f"{MARKER}-{number}"
        status, _, _ = await pool.call("ab"[number % 2], "PUT", key, body, Idempotency_Key=once)
        assert status == 201
        for expected, answer in (
            (422, await pool.call("a", "PUT", key, f"{MARKER} changed", Idempotency_Key=once)),
            (422, await pool.call("b", "PATCH", key, f"{{{MARKER}", Content_Type=patch)),
            (422, await pool.call("b", "PATCH", key, b"\xff" + MARKER.encode(), Content_Type=patch)),
            (415, await pool.call("a", "PATCH", key, f"{{{MARKER}", Content_Type=f"text/{MARKER}")),
            (412, await pool.call("a", "PUT", key, MARKER, If_Match=f'"{MARKER}"')),
            (400, await pool.call("a", "PUT", key, MARKER, Idempotency_Key=MARKER * 30)),
            (400, await pool.call("a", "PUT", key, MARKER, Understudy_TTL=MARKER)),
            (413, await pool.call("b", "PUT", key, MARKER * 10_000)),
            (413, await pool.call("b", "PUT", key, MARKER * 200_000)),
            (422, await pool.call("b", "PATCH", key, "[" * 100_000 + MARKER, Content_Type=patch)),
        ):
            assert answer[0] == expected, answer
            yield answer[2]
    head = f"PUT /v1/sessions/raw HTTP/1.1\r\nHost: {MARKER}\r\n"
    for request in (
        f"{head}Content-Length: 3\r\n\r\nabc{MARKER} {MARKER}\r\n\r\n",
        f"{head}Transfer-Encoding: chunked\r\n\r\n{MARKER}\r\nabc\r\n",
        f"{head}Content-Length: {MARKER}\r\n\r\nabc",
        f"{head}Content-Length: 300\r\n\r\n{MARKER}",
        f"{MARKER}\r\n\r\n",
    ):
        await raw(pool.members["a"].api, request)


async def raw(address: str, request: str) -> bytes:
    """Send bytes that are no good HTTP, and hang up after what comes back."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.encode())
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 40)
    finally:
        writer.close()


def test_ps_shows_no_token() -> None:
    """Tokens and passwords come from files and the environment: no command has an option that takes one."""
    for command in ("sidecar", "control"):
        shown = subprocess.run(
            [sys.executable, "-m", "understudy.deploy.cli", command, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "200"},
        ).stdout
        assert "--etcd-user" in shown
        assert "--etcd-password" not in shown
        assert "--session-token " not in shown
