"""An application for tests that takes its time: ``POST /slow`` answers only when ``POST /go`` was called.

``GET /`` tells the member's name and how many slow requests it holds. Nothing is kept in a session.
"""

import asyncio
import os

from aiohttp import web

GO = web.AppKey("go", asyncio.Event)
HELD = web.AppKey("held", list)


async def slow(request: web.Request) -> web.Response:
    request.app[HELD].append(request)
    await request.app[GO].wait()
    return web.Response()


async def about(request: web.Request) -> web.Response:
    return web.json_response({"member": os.environ["UNDERSTUDY_MEMBER"], "held": len(request.app[HELD])})


async def go(request: web.Request) -> web.Response:
    request.app[GO].set()
    return web.Response()


async def healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def prepare(app: web.Application) -> None:
    app[GO] = asyncio.Event()


if __name__ == "__main__":
    app = web.Application()
    app[HELD] = []
    app.on_startup.append(prepare)
    app.add_routes([web.post("/slow", slow), web.get("/", about), web.post("/go", go), web.get("/healthz", healthz)])
    web.run_app(app, host=os.environ["HOST"], port=int(os.environ["PORT"]), print=None, access_log=None)
