"""The demo's clients record what they saw, refusals and lost connections included, and try nothing twice."""

from collections import Counter
from contextlib import asynccontextmanager

from aiohttp import web

from tests.harness.waiting import free_port, until
from understudy.deploy.load.http_load import Load


class Shop:
    """Counts what arrives; answers as told."""

    def __init__(self):
        self.arrived = Counter()
        self.by_cookie = set()
        self.keys = Counter()
        self.fault = None

    async def handle(self, request):
        self.arrived[request.method, request.path] += 1
        if request.method == "POST":
            self.keys[request.headers["Idempotency-Key"]] += 1
        if self.fault == "refuse" and request.path != "/cart/items":
            return web.Response(status=503, text="no")
        if self.fault == "hang up":
            request.transport.close()
            return web.Response()
        key = request.headers.get("X-Session-Id") or request.cookies.get("sid")
        if key is None:
            key = f"session-{sum(self.arrived.values())}"
        elif "sid" in request.cookies:
            self.by_cookie.add(key)
        status = 201 if (request.method, request.path) == ("POST", "/cart") else 200
        return web.json_response({"session": key, "items": {"x": 1}}, status=status, headers={"X-Served-By": "cart-1"})


@asynccontextmanager
async def running(sessions=6, rate=120.0):
    shop, port = Shop(), free_port()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", shop.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    load = Load(f"http://127.0.0.1:{port}", sessions, rate)
    try:
        yield shop, load
    finally:
        await load.close()
        await runner.cleanup()


async def test_every_request_is_recorded_as_its_client_saw_it():
    async with running() as (shop, load):
        await load.open_sessions()
        load.start()
        await until(lambda: len(load.history) >= 100)
        await load.stop()
        contents = await load.final_contents()
    kinds = Counter(op.kind for op in load.history)
    assert len(load.history) == sum(shop.arrived.values())
    assert all(op.succeeded and op.served_by == "cart-1" and op.seen == {"x": 1} for op in load.history)
    assert kinds["create"] == kinds["check"] == 6
    assert 0.25 < kinds["write"] / (kinds["write"] + kinds["read"]) < 0.42
    assert set(contents) == {shopper.key for shopper in load.shoppers}
    assert len(shop.by_cookie) == 3


async def test_every_write_has_an_item_and_an_idempotency_key_of_its_own():
    async with running() as (shop, load):
        await load.open_sessions()
        load.start()
        await until(lambda: len(load.history) >= 100)
        await load.stop()
    written = [op.wrote for op in load.history if op.kind == "write"]
    assert len(set(written)) == len(written)
    assert set(shop.keys.values()) == {1}


async def test_refusals_and_lost_connections_are_failures_and_nothing_is_tried_twice():
    for fault, status in (("refuse", 503), ("hang up", 0)):
        async with running() as (shop, load):
            await load.open_sessions()
            shop.fault = fault
            load.start()
            await until(lambda load=load: sum(not op.succeeded for op in load.history) >= 20)
            await load.stop()
        failed = [op for op in load.history if not op.succeeded]
        assert {op.status for op in failed} == {status}
        assert all(op.error for op in failed)
        assert len(load.history) == sum(shop.arrived.values())
