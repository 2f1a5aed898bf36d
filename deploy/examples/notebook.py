"""A notebook over plain TCP without state in its own memory: an example of a service that is not HTTP.

Each client address has its own notebook. The address is the session key of a TCP pool; the front Envoy sends it in a
PROXY header (version 1) before the first line. All notes are in the session, which the sidecar replicates. If its
connection breaks, a client connects again, reaches the standby, and finds all acknowledged notes.

    PING            PONG
    WHO             ME <member> <address>
    ADD <id> <text> OK <number of notes>    the client chooses the id, so that it can repeat the request
    LIST            NOTES <number>, then one line per note: <id> <text>

The answer to a request that fails is ``ERROR <reason>``. If the outcome of a write is unknown, or if there is no
sidecar, the service closes the connection. The client then repeats the request on a new connection, which reaches
another member. Run it with ``python -m understudy.deploy.examples.notebook --port 8000``; its environment is that of
:mod:`understudy.deploy.examples.cart`.
"""

import argparse
import asyncio
import contextlib
import functools
import hashlib
import json
import os
import signal

from understudy.deploy.examples.cart import ATTEMPTS, SIDECAR_URL, Sessions, SidecarError

LONGEST_LINE = 4096
Notes = list[list[str]]


class BadRequest(Exception):
    """The request is answered with an error; the connection stays open."""


async def client_of(reader: asyncio.StreamReader) -> str | None:
    """The client's address from the PROXY header; '' for a health check; None if there is no header."""
    words = (await reader.readline()).decode("ascii", "replace").split()
    if words[:2] == ["PROXY", "UNKNOWN"]:
        return ""
    if len(words) == 6 and words[0] == "PROXY":
        return words[2]
    return None


async def read_notes(sessions: Sessions, key: str) -> tuple[Notes, str | None]:
    """The client's notes and their ETag; None if there is no session yet."""
    answer = await sessions.call("GET", key)
    if answer.status == 404:
        return [], None
    if answer.status != 200:
        raise BadRequest(answer.problem)
    return json.loads(answer.body)["notes"], answer.headers["ETag"]


async def add(sessions: Sessions, key: str, name: str, text: str) -> int:
    """Add a note, only once for repeated requests. Returns the number of notes."""
    once = hashlib.sha256(f"{name}/{text}".encode()).hexdigest()
    for _ in range(ATTEMPTS):
        notes, etag = await read_notes(sessions, key)
        if [name, text] in notes:
            return len(notes)
        wanted = {"If_Match": etag} if etag else {"If_None_Match": "*"}
        body = {"notes": [*notes, [name, text]]}
        answer = await sessions.call("PUT", key, body, Idempotency_Key=once, **wanted)
        if answer.status in (200, 201):
            return len(notes) + 1
        if answer.status != 412:
            raise BadRequest(answer.problem)
    raise BadRequest("too many writers at once")


async def answer_to(line: str, sessions: Sessions, member: str, key: str) -> str:
    """The answer to one line."""
    match line.split(maxsplit=2):
        case ["PING"]:
            return "PONG"
        case ["WHO"]:
            return f"ME {member} {key}"
        case ["ADD", name, text]:
            return f"OK {await add(sessions, key, name, text)}"
        case ["LIST"]:
            notes, _ = await read_notes(sessions, key)
            return "\n".join([f"NOTES {len(notes)}", *(f"{name} {text}" for name, text in notes)])
    raise BadRequest("the requests are PING, WHO, ADD <id> <text> and LIST")


async def serve_client(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sessions: Sessions, member: str
) -> None:
    """Serve one connection, from its PROXY header until one side closes it."""
    with contextlib.suppress(ConnectionError, ValueError, SidecarError):
        key = await client_of(reader)
        while key is not None and (line := (await reader.readline()).decode(errors="replace").strip()):
            try:
                reply = await answer_to(line, sessions, member, key)
            except BadRequest as why:
                reply = f"ERROR {why}"
            writer.write(f"{reply}\n".encode())
            await writer.drain()
    writer.close()


async def run(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    env = os.environ.get
    sessions = Sessions(env("UNDERSTUDY_URL", SIDECAR_URL), env("UNDERSTUDY_TOKEN"))
    serve = functools.partial(serve_client, sessions=sessions, member=env("UNDERSTUDY_MEMBER", "unnamed"))
    server = await asyncio.start_server(serve, host, port, limit=LONGEST_LINE)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()
    await sessions.close()


def main() -> None:
    """Read the address from the command line or the environment, and serve."""
    parser = argparse.ArgumentParser(description="Notebooks over TCP whose state is in Understudy sessions.")
    parser.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    options = parser.parse_args()
    asyncio.run(run(options.host, options.port))


if __name__ == "__main__":
    main()
