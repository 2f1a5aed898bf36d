"""The example cart of ``understudy.deploy.examples.cart`` over another store: what the peers of bench/failover.py run.

Everything but the store is the very same code: routes, reading before writing, ``If-Match``, idempotency keys. The
store is this process's memory or Redis (body, version and remembered idempotency keys changed by one script, so that a
repeated write has its effect once, as in Understudy). A client brings its own session key, which is what a proxy
hashes.

SIGUSR1 makes ``/healthz`` answer 503 (how a member behind Envoy or HAProxy asks for no more requests), SIGUSR2 200.

    python -m bench.failover_app --store memory|redis://127.0.0.1:6379 --name app-1 --port 8000
"""

import argparse
import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

import redis.asyncio
from aiohttp import web

from understudy.deploy.examples import cart

TTL = 3600
REMEMBERED = 60
_PUT = """
local version = redis.call('HGET', KEYS[1], 'v')
if not version then return {404, '0'} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {208, version} end
if version ~= ARGV[2] then return {412, version} end
local new = tostring(tonumber(version) + 1)
redis.call('HSET', KEYS[1], 'body', ARGV[1], 'v', new)
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], '1', 'EX', ARGV[4])
return {200, new}
"""


def answer(status: int, version: str, body: str) -> cart.SidecarResponse:
    """An answer as the sidecar would give it."""
    headers = {"ETag": version} | ({"Understudy-Repeated": "1"} if status == 208 else {})
    return cart.SidecarResponse(200 if status == 208 else status, headers, body.encode())


class Memory:
    """Sessions in this process, gone with it."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, int]] = {}
        self._done: set[tuple[str, str]] = set()

    async def create(self, key: str, body: str) -> None:
        self._kept[key] = (body, 1)

    async def call(
        self, method: str, key: str = "", body: object = None, **headers: str | None
    ) -> cart.SidecarResponse:
        if key not in self._kept:
            return answer(404, "0", "{}")
        text, version = self._kept[key]
        if method == "GET":
            return answer(200, str(version), text)
        once = (key, headers.get("Idempotency_Key") or "")
        if once in self._done:
            return answer(208, str(version), text)
        if headers.get("If_Match") != str(version):
            return answer(412, str(version), text)
        self._kept[key] = (json.dumps(body), version + 1)
        self._done.add(once)
        return answer(200, str(version + 1), json.dumps(body))

    async def close(self) -> None:
        """Nothing to do."""


class Redis:
    """Sessions in Redis, a hash each."""

    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(url, decode_responses=True, socket_timeout=2, max_connections=2000)
        self._put = self._redis.register_script(_PUT)

    async def create(self, key: str, body: str) -> None:
        await self._redis.hset(f"session:{key}", mapping={"body": body, "v": "1"})
        await self._redis.expire(f"session:{key}", TTL)

    async def call(
        self, method: str, key: str = "", body: object = None, **headers: str | None
    ) -> cart.SidecarResponse:
        try:
            return await self._call(method, f"session:{key}", body, headers)
        except redis.exceptions.RedisError as error:
            raise cart.SidecarError(f"Redis: {error}", sent=method != "GET") from None

    async def _call(
        self, method: str, where: str, body: object, headers: Mapping[str, str | None]
    ) -> cart.SidecarResponse:
        if method == "GET":
            text, version = await self._redis.hmget(where, "body", "v")
            return answer(200, version, text) if version else answer(404, "0", "{}")
        keys = [where, f"{where}:{headers.get('Idempotency_Key')}"]
        text = json.dumps(body)
        status, version = await self._put(keys, [text, headers.get("If_Match"), TTL, REMEMBERED])
        return answer(int(status), version, text)

    async def close(self) -> None:
        await self._redis.aclose()


def make_app(store: str, name: str) -> web.Application:
    """The cart over ``store``; ``name`` stands in every answer."""
    healthy = True
    app = web.Application(middlewares=[cart.ask_another_member])

    async def create(request: web.Request) -> web.Response:
        key = cart.session_key(request)
        await kept.create(key, json.dumps({"items": {}}))
        return cart.view(key, {"items": {}}, status=201)

    async def health(_: web.Request) -> web.Response:
        return web.Response(status=200 if healthy else 503)

    def turn(to: bool) -> None:
        nonlocal healthy
        healthy = to

    shared = [route for route in cart.routes if (route.method, route.path) != ("POST", "/cart")]  # type: ignore[attr-defined]
    app.add_routes([route for route in shared if route.path != "/healthz"])  # type: ignore[attr-defined]
    app.add_routes([web.post("/cart", create), web.get("/healthz", health)])
    kept: Any = None

    async def sessions(app: web.Application) -> AsyncIterator[None]:
        nonlocal kept
        kept = Memory() if store == "memory" else Redis(store)
        app[cart.SESSIONS] = kept
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, turn, False)
        loop.add_signal_handler(signal.SIGUSR2, turn, True)
        yield
        await kept.close()

    async def name_the_server(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Served-By"] = name

    app.cleanup_ctx.append(sessions)
    app.on_response_prepare.append(name_the_server)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    web.run_app(make_app(options.store, options.name), host="127.0.0.1", port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
