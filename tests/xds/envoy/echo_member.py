"""A member's application for tests: says who it is, and notes every request in a file that outlives it.

``NOTES.copies`` has for each request its mark, which try of Envoy's it was, the member, and its ``Understudy-Request``.

``python -m tests.xds.envoy.echo_member NAME PORT NOTES``. ``/wait`` answers only when the file ``NOTES.go`` exists.
``/safe-unless`` and ``/fail-unless`` answer 503, with and without ``understudy-retry: safe``, unless the query's
``member`` is this one. ``/set-cookie`` sets a cookie.
"""

import os
import sys
from pathlib import Path

from aiohttp import web

from tests.harness.waiting import until


def application(name: str, notes: Path) -> web.Application:
    go = notes.with_name(notes.name + ".go")
    file = os.open(notes, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    copies = os.open(notes.with_name(notes.name + ".copies"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        if request.path == "/health":
            return web.Response()
        os.write(file, f"{name} {request.headers.get('x-request', '-')}\n".encode())
        mark, attempt, stamp = (
            request.headers.get(header, "-") for header in ("x-request", "x-envoy-attempt-count", "understudy-request")
        )
        os.write(copies, f"{mark} {attempt} {name} {stamp}\n".encode())
        if request.path == "/wait":
            await until(go.exists, timeout=60, what="leave to answer")
        elsewhere = request.query.get("member", name) != name
        if elsewhere and request.path == "/safe-unless":
            return web.Response(status=503, headers={"understudy-retry": "safe"})
        if elsewhere and request.path == "/fail-unless":
            return web.Response(status=503)
        ours = [header.lower() for header in request.headers if "understudy-" in header.lower()]
        told = {"x-body-bytes": str(len(body)), "x-ours": " ".join(sorted(ours))}
        if request.path == "/set-cookie":
            told["set-cookie"] = "basket=3"
        return web.Response(text=name, headers=told)

    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


if __name__ == "__main__":
    web.run_app(application(sys.argv[1], Path(sys.argv[3])), host="127.0.0.1", port=int(sys.argv[2]), print=None)
