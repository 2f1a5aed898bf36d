"""An application whose sessions are in Redis, or behind a sidecar's Redis port: what bench/requests.py runs.

``GET /visit`` reads the session of ``X-Session-Id``. ``POST /visit`` reads it, counts one visit more and writes it.
With ``--wait`` it then waits for Redis's replica (``WAIT 1``).

    python -m bench.request_app --store redis://127.0.0.1:6379 --port 8000 [--wait]
"""

import argparse
import json
import os

import redis.asyncio
from aiohttp import web

TTL = 3600
FILLING = "x" * 200
"""Makes a session about 256 bytes long."""


def make_app(store: str, *, wait: bool) -> web.Application:
    sessions = redis.asyncio.Redis.from_url(store, socket_timeout=10, max_connections=2000)

    async def visit(request: web.Request) -> web.Response:
        key = request.headers["X-Session-Id"]
        stored = await sessions.get(key)
        session = json.loads(stored) if stored else {"visits": 0, "filling": FILLING}
        if request.method == "POST":
            session["visits"] += 1
            await sessions.set(key, json.dumps(session), ex=TTL)
            if wait and await sessions.wait(1, 1000) < 1:
                raise web.HTTPServiceUnavailable(text="the replica does not have it")
        return web.json_response({"visits": session["visits"]})

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/visit", visit), web.post("/visit", visit), web.get("/healthz", health)])
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default=os.environ.get("UNDERSTUDY_REDIS_URL"))
    parser.add_argument("--port", type=int, default=os.environ.get("PORT"))
    parser.add_argument("--wait", action="store_true")
    options = parser.parse_args()
    app = make_app(options.store, wait=options.wait)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
