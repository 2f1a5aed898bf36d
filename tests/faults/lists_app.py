"""An application that keeps a list per session and writes it as docs/api.md asks for; it can be told to be slow.

    POST /list             makes the list: 201, or 409 if there is one
    POST /list/items       adds {"value": ...}: 200, or 404 without a list
    GET /list              200 with the list, or 404
    DELETE /list           204, or 404
    GET /finished          the Idempotency-Keys of all requests that this process has carried out, copies included
    POST /slow             {"share": 0.5, "least": 0.2, "most": 3.0}: so many requests wait so many seconds, at random
                           before, between and after their calls to the sidecar

503 means that the outcome is unknown. With ``STAMPS=off`` it hands on the ``Idempotency-Key`` alone.
"""

import asyncio
import hashlib
import json
import os
import random

from aiohttp import web

from understudy.deploy.examples.cart import (
    ATTEMPTS,
    SESSIONS,
    UNDERSTUDY_REQUEST,
    Handler,
    Sessions,
    SidecarError,
    SidecarResponse,
    ask_another_member,
)

routes = web.RouteTableDef()
STRICT = {"Understudy_Consistency": "linearizable"}


class Pace:
    """How slow this process is told to be."""

    def __init__(self) -> None:
        self.share, self.least, self.most = 0.0, 0.0, 0.0

    async def perhaps_wait(self) -> None:
        if random.random() < self.share:
            await asyncio.sleep(random.uniform(self.least, self.most))


TOLD = "told"
HANDED_ON = ("Understudy-Slot", "Understudy-Epoch", "Understudy-Durability", "Understudy-Repeated")
"""What the sidecar's last answer says that the client gets too, so that a checker knows it."""
PACE = web.AppKey("PACE", Pace)
FINISHED = web.AppKey("FINISHED", list[str])


class Lists:
    """The session calls of one request, with waits at random places."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.key = request.headers["X-Session-Id"]
        given = request.headers.get("Idempotency-Key")
        self._given = hashlib.sha256(f"{given}/{request.method}".encode()).hexdigest() if given else None

    async def call(self, method: str, body: object = None, *, action: str = "", **headers: str) -> SidecarResponse:
        pace = self._request.app[PACE]
        await pace.perhaps_wait()
        named = {} if method == "GET" else {"Idempotency_Key": self._given}
        sessions = self._request.app[SESSIONS]
        answer = await sessions.call(method, self.key, body, action=action, **named, **headers)
        await pace.perhaps_wait()
        if answer.status == 409:
            raise SidecarError(f"this copy was not carried out: {answer.problem}", sent=True)
        self._request[TOLD] = {name: answer.headers[name] for name in HANDED_ON if name in answer.headers}
        return answer


@routes.post("/list")
async def make(request: web.Request) -> web.Response:
    answer = await Lists(request).call("PUT", body=[], If_None_Match="*")
    return web.Response(status={201: 201, 412: 409}.get(answer.status, 500))


@routes.get("/list")
async def show(request: web.Request) -> web.Response:
    answer = await Lists(request).call("GET", **STRICT)
    return web.Response(status=answer.status, body=answer.body if answer.status == 200 else b"")


@routes.delete("/list")
async def discard(request: web.Request) -> web.Response:
    answer = await Lists(request).call("DELETE")
    return web.Response(status=answer.status if answer.status in (204, 404) else 500)


@routes.post("/list/items")
async def add(request: web.Request) -> web.Response:
    lists, value = Lists(request), (await request.json())["value"]
    for _ in range(ATTEMPTS):
        found = await lists.call("GET", **STRICT)
        if found.status == 404:
            refused = await lists.call("POST", action="refusal") if can_refuse(request) else None
            done = refused is not None and refused.repeated
            return web.Response(status=200 if done else 404)
        changed = [*json.loads(found.body), value]
        answer = await lists.call("PUT", body=changed, If_Match=found.headers["ETag"])
        if answer.status != 412:
            return web.Response(status=200 if answer.status == 200 else 500)
    raise SidecarError("too many writers at once", sent=True)


def can_refuse(request: web.Request) -> bool:
    """Whether the request has an identity by which copies of it can be refused."""
    return bool(UNDERSTUDY_REQUEST.get() or "Idempotency-Key" in request.headers)


@routes.post("/slow")
async def be_slow(request: web.Request) -> web.Response:
    told = await request.json()
    pace = request.app[PACE]
    pace.share, pace.least, pace.most = told["share"], told["least"], told["most"]
    return web.Response()


@routes.get("/finished")
async def finished(request: web.Request) -> web.Response:
    return web.json_response(request.app[FINISHED])


@web.middleware
async def note_end(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Note the request once nothing of it is left to do, however it ended."""
    try:
        return await asyncio.shield(handler(request))
    finally:
        if "Idempotency-Key" in request.headers:
            request.app[FINISHED].append(request.headers["Idempotency-Key"])


@routes.get("/healthz")
async def health(_: web.Request) -> web.Response:
    return web.Response()


@web.middleware
async def hand_on(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the client what the sidecar told of its answer."""
    answer = await handler(request)
    answer.headers.update(request.get(TOLD, {}))
    return answer


@web.middleware
async def without_stamps(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Forget the stamp, as an application does that hands on the ``Idempotency-Key`` alone."""
    UNDERSTUDY_REQUEST.set(None)
    return await handler(request)


def main() -> None:
    app = web.Application(middlewares=[note_end, ask_another_member, hand_on])
    if os.environ.get("STAMPS") == "off":
        app.middlewares.append(without_stamps)
    app.add_routes(routes)
    app[PACE] = Pace()
    app[FINISHED] = []

    async def connect(app: web.Application) -> None:
        app[SESSIONS] = Sessions(os.environ["UNDERSTUDY_URL"])

    app.on_startup.append(connect)
    web.run_app(app, host=os.environ["HOST"], port=int(os.environ["PORT"]), print=None, access_log=None)


if __name__ == "__main__":
    main()
