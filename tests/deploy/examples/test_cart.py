"""The sample cart beside real sidecars: adds take effect once, and 503 says whether another member may be asked."""

import asyncio
import time
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from tests.harness.sidecars import sidecar_pool
from tests.harness.waiting import free_port
from understudy.deploy.examples.cart import Sessions, SidecarError, make_app

TEA = {"sku": "tea", "quantity": 2}


class Shop:
    """One running cart application, and a client for it."""

    def __init__(self, url, http):
        self.url, self.http = url, http

    async def __call__(self, method, path, body=None, *, session=None, once=None, **headers):
        if session is not None:
            headers["X-Session-Id"] = session
        if once is not None:
            headers["Idempotency-Key"] = once
        async with self.http.request(method, self.url + path, json=body, headers=headers) as answer:
            content = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, (await answer.json() if is_json else content.decode()), answer.headers


@asynccontextmanager
async def open_shop(session_api, member="cart-1"):
    port = free_port()
    runner = web.AppRunner(make_app(session_api, member))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            yield Shop(f"http://127.0.0.1:{port}", http)
    finally:
        await runner.cleanup()


async def test_a_write_to_a_sidecar_that_ends_before_its_answer_counts_as_sent():
    """The client sent it again by itself, found nobody, and Envoy was told that it may ask another member."""
    calls = []

    async def end_at_the_write(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            calls.append(head.split(b" ", 1)[0])
            if calls[-1] != b"GET":
                server.close()
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
        writer.close()

    server = await asyncio.start_server(end_at_the_write, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    sessions = Sessions(f"http://{host}:{port}")
    try:
        assert (await sessions.call("GET", "k")).body == b"[]"
        with pytest.raises(SidecarError) as lost:
            await sessions.call("PUT", "k", ["tea"])
    finally:
        await sessions.close()
    assert (lost.value.sent, calls) == (True, [b"GET", b"PUT"])


@pytest.fixture
async def members(etcd, pool_name):
    """Two members with slots shared between them."""
    async with sidecar_pool(etcd, pool_name) as pool:
        await pool.start("cart-1", "cart-2")
        await pool.settle(("cart-1", "cart-2"))
        yield pool


@pytest.fixture
async def shop(members):
    async with open_shop(f"http://{members.members['cart-1'].api}") as shop:
        yield shop


async def new_cart(shop, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, made, _ = await shop("POST", "/cart", once="make-it", **named)
    assert status == 201
    return made["session"]


async def test_a_cart_is_made_filled_shown_and_thrown_away(shop):
    status, made, headers = await shop("POST", "/cart")
    key = made["session"]
    assert (status, made["items"]) == (201, {})
    assert headers["X-Session-Id"] == key
    assert headers["X-Served-By"] == "cart-1"
    assert f"sid={key};" in headers["Set-Cookie"]
    assert (await shop("POST", "/cart/items", TEA, session=key))[0] == 200
    status, cart, _ = await shop("GET", "/cart", Cookie=f"sid={key}")
    assert (status, cart) == (200, {"session": key, "items": {"tea": 2}})
    assert (await shop("DELETE", "/cart", session=key))[0] == 204
    assert (await shop("GET", "/cart", session=key))[0] == 404


async def test_copies_of_a_request_get_the_same_cart_and_nobody_else_does(members, shop):
    stamp = f"{time.time():.3f};one"
    async with open_shop(f"http://{members.members['cart-2'].api}", "cart-2") as other:
        carts = [await new_cart(at, Understudy_Request=stamp) for at in (shop, other, shop)]
        assert len(set(carts)) == 1
        assert await new_cart(other, Understudy_Request=f"{time.time():.3f};two") not in carts
        assert await new_cart(shop) != await new_cart(shop)


async def test_an_add_with_the_same_key_counts_once_even_if_the_cart_changed_in_between(shop):
    key = await new_cart(shop)
    await shop("POST", "/cart/items", TEA, session=key, once="add-1")
    await shop("POST", "/cart/items", {"sku": "milk"}, session=key, once="add-2")
    status, cart, _ = await shop("POST", "/cart/items", TEA, session=key, once="add-1")
    assert (status, cart["items"]) == (200, {"tea": 2, "milk": 1})


async def test_an_add_without_a_key_counts_every_time(shop):
    key = await new_cart(shop)
    await shop("POST", "/cart/items", TEA, session=key)
    assert (await shop("POST", "/cart/items", TEA, session=key))[1]["items"] == {"tea": 4}


async def test_a_key_reused_for_another_item_is_another_add(shop):
    key = await new_cart(shop)
    await shop("POST", "/cart/items", TEA, session=key, once="same")
    assert (await shop("POST", "/cart/items", {"sku": "milk"}, session=key, once="same"))[1]["items"] == {
        "tea": 2,
        "milk": 1,
    }


async def test_adds_at_the_same_time_all_count(shop):
    key = await new_cart(shop)
    adds = [shop("POST", "/cart/items", {"sku": "tea"}, session=key, once=f"add-{n}") for n in range(6)]
    assert [status for status, _, _ in await asyncio.gather(*adds)] == [200] * 6
    assert (await shop("GET", "/cart", session=key))[1]["items"] == {"tea": 6}


async def test_an_add_repeated_at_the_next_member_after_a_kill_counts_once(members, shop):
    key = await new_cart(shop)
    assert (await shop("POST", "/cart/items", TEA, session=key, once="add-1"))[0] == 200
    members.kill("cart-1")
    async with open_shop(f"http://{members.members['cart-2'].api}", "cart-2") as other:
        status, cart, headers = await other("POST", "/cart/items", TEA, session=key, once="add-1")
        assert (status, cart["items"]) == (200, {"tea": 2})
        assert headers["X-Served-By"] == "cart-2"
        assert (await other("POST", "/cart/items", TEA, session=key, once="add-2"))[1]["items"] == {"tea": 4}


async def test_an_item_may_have_any_name(shop):
    key = await new_cart(shop)
    odd = "thé\nvert " * 40
    assert (await shop("POST", "/cart/items", {"sku": odd}, session=key, once="k" * 255))[1]["items"] == {odd: 1}


@pytest.mark.parametrize(
    "body", [None, [], {}, {"sku": ""}, {"sku": 7}, {"sku": "tea", "quantity": 0}, {"sku": "tea", "quantity": "two"}]
)
async def test_what_is_no_item_is_refused(shop, body):
    status, _, _ = await shop("POST", "/cart/items", body, session=await new_cart(shop))
    assert status == 400


async def test_without_a_session_a_client_is_told_how_to_get_one(shop):
    status, text, _ = await shop("GET", "/cart")
    assert (status, "POST /cart" in text) == (400, True)
    assert (await shop("GET", "/cart", session="nobody"))[0] == 404


CALLS = [("POST", "/cart", None), ("GET", "/cart", None), ("POST", "/cart/items", TEA), ("DELETE", "/cart", None)]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
async def test_without_a_sidecar_another_member_may_always_be_asked(method, path, body):
    async with open_shop(f"http://127.0.0.1:{free_port()}") as shop:
        status, _, headers = await shop(method, path, body, session="key")
        assert (status, headers["understudy-retry"]) == (503, "safe")
        assert headers["Retry-After"] == "1"
        assert (await shop("GET", "/healthz"))[0] == 200


@asynccontextmanager
async def a_sidecar_that_dies_in_mid_call(*, answers_reads):
    """Takes a request and closes the connection, as a sidecar killed right then would."""

    async def die(request):
        if request.method == "GET" and answers_reads:
            return web.json_response({"items": {}}, headers={"ETag": '"1"'})
        request.transport.close()
        return web.Response()

    port = free_port()
    runner = web.ServerRunner(web.Server(die))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_a_read_that_lost_its_sidecar_may_be_repeated():
    async with a_sidecar_that_dies_in_mid_call(answers_reads=False) as url, open_shop(url) as shop:
        status, _, headers = await shop("GET", "/cart", session="key")
        assert (status, headers["understudy-retry"]) == (503, "safe")


@pytest.mark.parametrize(("method", "path", "body"), [call for call in CALLS if call[0] != "GET"])
async def test_a_write_that_lost_its_sidecar_may_be_repeated_only_with_an_idempotency_key(method, path, body):
    async with a_sidecar_that_dies_in_mid_call(answers_reads=True) as url, open_shop(url) as shop:
        status, _, headers = await shop(method, path, body, session="key", once="add-1")
        assert (status, headers["understudy-retry"]) == (503, "safe")
        status, _, headers = await shop(method, path, body, session="key")
        assert (status, "understudy-retry" in headers) == (503, False)


async def test_a_sidecar_on_a_unix_socket_is_found(tmp_path):
    async def answer(_):
        return web.json_response({"items": {"tea": 1}}, headers={"ETag": '"1"'})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "api.sock")).start()
    try:
        async with open_shop(f"unix:{tmp_path}/api.sock") as shop:
            assert (await shop("GET", "/cart", session="key"))[1]["items"] == {"tea": 1}
    finally:
        await runner.cleanup()
