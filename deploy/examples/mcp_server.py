"""An MCP server whose sessions survive drains and crashes: an example to copy.

It is the server of the official Python SDK, unmodified, which serves each request by itself (``stateless_http``).
:class:`McpSessions` in front of it keeps the sessions of the protocol in Understudy: any member can answer any request
of any session, so a session is found after a drain, a crash or a restart. Envoy routes by the header
``mcp-session-id``; the sidecar draws the id, so that this member serves the session that it has opened.

What a tool must remember goes into the session (``remember`` and ``recall`` below), not into the memory of the process.
What a crash still costs is the call that is under way at the member that dies: the client gets an error, and cannot
know whether the tool took effect. There is no stream from the server to the client (``GET`` answers 405, as the
protocol permits), so sampling, elicitation and notifications between calls are not available.

The protocol is Model Context Protocol 2025-06-18, "Streamable HTTP", section "Session Management". Version 2026-07-28
has no such sessions; its requests pass through.

Run it with ``python -m understudy.deploy.examples.mcp_server --port 8000``; its environment is that of
:mod:`understudy.deploy.examples.cart`. The pool's spec needs ``session_key: [{header: mcp-session-id}]``.
"""

import argparse
import asyncio
import json
import os
from contextvars import ContextVar

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from understudy.deploy.examples.cart import (
    ATTEMPTS,
    SIDECAR_URL,
    TRACEPARENT,
    UNDERSTUDY_REQUEST,
    Sessions,
    SidecarError,
)

SESSION_ID = "mcp-session-id"
SESSION: ContextVar[str] = ContextVar("mcp-session")
"""The id of the session that the current call belongs to."""
NOT_FOUND = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Session not found"}}
"""What a client gets for a session that does not exist (any more), with status 404: it opens another one."""


class McpSessions:
    """Keeps the sessions of the protocol in Understudy, in front of a server that has none."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request about sessions, or pass it on (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == "/healthz":
            await PlainTextResponse("ok\n")(scope, receive, send)
            return
        request = Request(scope, receive)
        TRACEPARENT.set(request.headers.get("traceparent"))
        UNDERSTUDY_REQUEST.set(request.headers.get("understudy-request"))
        try:
            await self._serve(request, send)
        except SidecarError as lost:
            # Nothing has been answered yet. Envoy may ask another member if no tool can have run.
            safe = {} if lost.sent else {"understudy-retry": "safe"}
            await Response(f"{lost}\n", 503, {"Retry-After": "1"} | safe)(scope, receive, send)

    async def _serve(self, request: Request, send: Send) -> None:
        scope, receive = request.scope, request.receive
        key = request.headers.get(SESSION_ID)
        if request.method == "GET":
            await Response(status_code=405, headers={"Allow": "POST, DELETE"})(scope, receive, send)
        elif key is None:
            await self._open(request, send)
        elif request.method == "DELETE":
            answer = await self._sessions.call("DELETE", key)
            response = Response(status_code=204) if answer.status == 204 else JSONResponse(NOT_FOUND, 404)
            await response(scope, receive, send)
        elif (await self._sessions.call("GET", key, Understudy_Touch="true")).status != 200:
            await JSONResponse(NOT_FOUND, 404)(scope, receive, send)
        else:
            SESSION.set(key)
            await self._app(scope, receive, send)

    async def _open(self, request: Request, send: Send) -> None:
        """A request without a session. Only ``initialize`` opens one."""
        body = await request.body()
        if not _initializes(body):
            await self._app(request.scope, _again(body, request.receive), send)
            return
        answer = await self._sessions.call("POST", body={"notes": []})
        if answer.status != 201:
            raise SidecarError(f"the sidecar created no session: {answer.status}", sent=False)
        key = json.loads(answer.body)["key"]

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                message["headers"] = [*message["headers"], (SESSION_ID.encode(), key.encode())]
            await send(message)

        await self._app(request.scope, _again(body, request.receive), with_id)


def _initializes(body: bytes) -> bool:
    """Whether the request is the handshake of the protocol."""
    try:
        call = json.loads(body)
    except ValueError:
        return False
    return isinstance(call, dict) and call.get("method") == "initialize"


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more; afterwards what the connection says."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


async def read_notes(sessions: Sessions) -> tuple[list[str], str]:
    """The notes of the session and its ETag."""
    answer = await sessions.call("GET", SESSION.get())
    if answer.status != 200:
        raise ValueError("the session has ended")
    return json.loads(answer.body)["notes"], answer.headers["ETag"]


async def add_note(sessions: Sessions, text: str) -> int:
    """Add a note, once for all copies of a request. Returns the number of notes."""
    once = UNDERSTUDY_REQUEST.get()
    for _ in range(ATTEMPTS):
        notes, etag = await read_notes(sessions)
        body = {"notes": [*notes, text]}
        answer = await sessions.call("PUT", SESSION.get(), body, If_Match=etag, Idempotency_Key=once)
        if answer.repeated:
            return len((await read_notes(sessions))[0])
        if answer.status == 200:
            return len(notes) + 1
        if answer.status != 412:
            raise ValueError(f"the note was not stored: {answer.problem}")
    raise ValueError("too many writers at once")


def make_app(sessions: Sessions, member: str) -> ASGIApp:
    """The application of one member."""
    server = MCPServer("notes")

    @server.tool()
    async def remember(text: str) -> str:
        """Remember a text in this session."""
        return f"{await add_note(sessions, text)} notes"

    @server.tool()
    async def recall() -> str:
        """All texts that this session remembers, one per line."""
        return "\n".join((await read_notes(sessions))[0])

    @server.tool()
    async def who() -> str:
        """The member that answers."""
        return member

    # Envoy passes on the name by which clients know the service, and the SDK would refuse names that it does not know.
    any_name = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    served = server.streamable_http_app(stateless_http=True, json_response=True, transport_security=any_name)
    return McpSessions(served, sessions)


async def serve(host: str, port: int) -> None:
    """Serve until the process is told to stop."""
    sessions = Sessions(os.environ.get("UNDERSTUDY_URL", SIDECAR_URL), os.environ.get("UNDERSTUDY_TOKEN"))
    app = make_app(sessions, os.environ.get("UNDERSTUDY_MEMBER", "unnamed"))
    try:
        await uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).serve()
    finally:
        await sessions.close()


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description="An MCP server whose sessions are Understudy sessions.")
    parser.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    options = parser.parse_args()
    asyncio.run(serve(options.host, options.port))


if __name__ == "__main__":
    main()
