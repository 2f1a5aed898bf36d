"""An application for tests that takes its time: ``POST /slow`` answers only when ``POST /go`` was called.

``GET /page`` takes half a second. ``GET /`` tells the member's name, how many slow requests it holds and for which
sessions it made pages, with the monotonic time when it began each. Nothing is kept in a session.
"""

import asyncio
import os
import time

from aiohttp import web

GO = web.AppKey("go", asyncio.Event)
HELD = web.AppKey("held", list)
PAGES = web.AppKey("pages", list)


async def slow(request: web.Request) -> web.Response:
    request.app[HELD].append(request)
    await request.app[GO].wait()
    return web.Response()


async def page(request: web.Request) -> web.Response:
    request.app[PAGES].append((request.headers["x-session-id"], time.monotonic()))
    await asyncio.sleep(0.5)
    return web.Response()


async def about(request: web.Request) -> web.Response:
    held = len(request.app[HELD])
    return web.json_response({"member": os.environ["UNDERSTUDY_MEMBER"], "held": held, "pages": request.app[PAGES]})


async def go(request: web.Request) -> web.Response:
    request.app[GO].set()
    return web.Response()


async def healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def prepare(app: web.Application) -> None:
    app[GO] = asyncio.Event()


if __name__ == "__main__":
    app = web.Application()
    app[HELD], app[PAGES] = [], []
    app.on_startup.append(prepare)
    app.add_routes([web.post("/slow", slow), web.get("/", about), web.post("/go", go), web.get("/healthz", healthz)])
    app.add_routes([web.get("/page", page)])
    web.run_app(app, host=os.environ["HOST"], port=int(os.environ["PORT"]), print=None, access_log=None)
