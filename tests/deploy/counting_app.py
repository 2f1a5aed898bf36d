"""An application with streams for tests: counts the messages of a session, whoever served the ones before.

``GET /count`` is a WebSocket; each message adds one to the session's count and is answered with the member's name and
the count. ``GET /events`` streams events with ascending ids, from the one after ``Last-Event-ID``; the newest id is in
the session. Both are kept in the session alone.
"""

import asyncio
import json
import os

from aiohttp import web

from understudy.deploy.examples.cart import Sessions


async def count(request: web.Request) -> web.WebSocketResponse:
    key = request.headers["x-session-id"]
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    sessions = Sessions(os.environ["UNDERSTUDY_URL"])
    try:
        async for _ in socket:
            answer = await sessions.call("GET", key)
            counted = json.loads(answer.body)["count"] + 1 if answer.status == 200 else 1
            await sessions.call("PUT", key, {"count": counted}, If_Match=answer.headers.get("ETag"))
            await socket.send_json({"member": os.environ["UNDERSTUDY_MEMBER"], "count": counted})
    finally:
        await sessions.close()
    return socket


async def events(request: web.Request) -> web.StreamResponse:
    key = request.headers["x-session-id"]
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    sessions = Sessions(os.environ["UNDERSTUDY_URL"])
    try:
        answer = await sessions.call("GET", key)
        newest = json.loads(answer.body)["count"] if answer.status == 200 else 0
        sent = int(request.headers.get("Last-Event-ID", newest))
        await stream.prepare(request)
        while True:
            if sent == newest:
                newest += 1
                await sessions.call("PUT", key, {"count": newest})
            sent += 1
            data = json.dumps({"member": os.environ["UNDERSTUDY_MEMBER"], "newest": newest})
            await stream.write(f"id: {sent}\ndata: {data}\n\n".encode())
            await asyncio.sleep(0.05)
    finally:
        await sessions.close()


async def healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.get("/count", count), web.get("/events", events), web.get("/healthz", healthz)])
    web.run_app(app, host=os.environ["HOST"], port=int(os.environ["PORT"]), print=None, access_log=None)
