"""A shopping cart that keeps nothing in its own memory: an example to copy.

All state is in sessions, which the sidecar next door keeps replicated. Any member can therefore answer any
request, and a killed one loses nothing. Some habits go with that, and each is a few lines below:

- read with the ETag, write with ``If-Match``, and read again when somebody else was faster (412);
- hand ``Understudy-Request`` on with every call: Envoy sets it, the same on all copies of a request, and the
  sidecar sees to it that only one of them has an effect, however late the others come;
- hand the client's ``Idempotency-Key`` on with the write, so that what the client itself repeats has its effect
  once as well;
- before refusing a request because of what was read, say so to the sidecar: then no late copy of it can have the
  effect that its client was told it did not have;
- quote the client's session key in the path of a call: ``../checks/db`` is then a bad key, and no other path;
- hand ``traceparent`` on, so that a failover's trace names the last request before and the first after it;
- say ``understudy-retry: safe`` when a request may be sent to another member, and Envoy will do so.

Run it with ``python -m understudy.deploy.examples.cart --port 8000``; ``UNDERSTUDY_URL`` names the sidecar's session
API, and ``UNDERSTUDY_TOKEN`` is shown to it if it wants one.
"""

import argparse
import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)
"""Of the request being answered. An HTTP client that OpenTelemetry instruments passes it on by itself."""
UNDERSTUDY_REQUEST: ContextVar[str | None] = ContextVar("understudy-request", default=None)
"""Which request this is a copy of, and when that began."""
SIDECAR_URL = "http://127.0.0.1:7600"
ATTEMPTS = 10
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
routes = web.RouteTableDef()


@dataclass(frozen=True)
class Answer:
    """What the sidecar said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def repeated(self) -> bool:
        """Whether a write with this idempotency key took effect before."""
        return "Understudy-Repeated" in self.headers

    @property
    def problem(self) -> str:
        """The last part of the problem's type (RFC 9457), e.g. ``no-such-session``."""
        kind: str = json.loads(self.body).get("type", "")
        return kind.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]


class SidecarError(Exception):
    """The sidecar gave no useful answer. ``sent``: a write may have reached it, so its outcome is unknown."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Sessions:
    """The sidecar's session API, as far as a cart needs it."""

    def __init__(self, url: str, token: str | None = None) -> None:
        unix = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._base = "http://sidecar" if unix else url.rstrip("/")
        connector = aiohttp.UnixConnector(unix) if unix else aiohttp.TCPConnector(limit=0)
        shown = {"Authorization": f"Bearer {token}"} if token else None
        self._http = aiohttp.ClientSession(connector=connector, headers=shown, timeout=aiohttp.ClientTimeout(total=8))

    async def call(
        self, method: str, key: str = "", body: object = None, *, action: str = "", **headers: str | None
    ) -> Answer:
        """Make one call; raises :class:`SidecarError`. ``If_Match="x"`` sends the header ``If-Match: x``.

        ``action`` is what follows the key in the path.
        """
        told = {"traceparent": TRACEPARENT.get(), "Understudy-Request": UNDERSTUDY_REQUEST.get(), **headers}
        sent = {name.replace("_", "-"): value for name, value in told.items() if value is not None}
        parts = [quote(part, safe="", errors="surrogateescape") for part in (key, action) if part]
        # Sent as it is: otherwise aiohttp would resolve "..".
        url = URL("/".join([f"{self._base}/v1/sessions", *parts]), encoded=True)
        try:
            async with self._http.request(method, url, json=body, headers=sent) as response:
                answer = Answer(response.status, response.headers, await response.read())
        except aiohttp.ClientConnectorError:
            raise SidecarError("the sidecar cannot be reached", sent=False) from None
        except (aiohttp.ClientError, TimeoutError):
            raise SidecarError("the sidecar was lost in mid-call", sent=method != "GET") from None
        if answer.status >= 500:
            raise SidecarError(f"the sidecar answered {answer.status}", sent=method != "GET")
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


SESSIONS = web.AppKey("SESSIONS", Sessions)


@web.middleware
async def ask_another_member(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 503 without a sidecar, and tell Envoy whether the next member may be asked instead.

    It may when nothing was written yet, and when a second time does no harm: reads, and whatever carries an
    ``Idempotency-Key``.
    """
    TRACEPARENT.set(request.headers.get("traceparent"))
    UNDERSTUDY_REQUEST.set(request.headers.get("Understudy-Request"))
    try:
        return await handler(request)
    except SidecarError as lost:
        safe = not lost.sent or request.method == "GET" or "Idempotency-Key" in request.headers
        headers = {"Retry-After": "1"} | ({"understudy-retry": "safe"} if safe else {})
        return web.Response(status=503, text=f"{lost}\n", headers=headers)


@web.middleware
async def refuse_compressed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 415 to compressed bodies: a small one may be very large when it is unpacked."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(text="send the body without Content-Encoding\n")
    return await handler(request)


def session_key(request: web.Request) -> str:
    """The client's session key: the header wins over the cookie, as in the pool's spec."""
    key = request.headers.get("X-Session-Id") or request.cookies.get("sid")
    if not key:
        raise web.HTTPBadRequest(text="no session yet: POST /cart makes one; then send X-Session-Id or cookie sid\n")
    return key


def view(key: str, cart: dict[str, Any], *, status: int = 200) -> web.Response:
    """What the client gets to see of a cart."""
    return web.json_response({"session": key, **cart}, status=status, headers={"X-Session-Id": key})


async def view_of(request: web.Request, key: str) -> web.Response:
    """Read the cart and show it."""
    cart, _ = await read_cart(request, key)
    return view(key, cart)


async def read_cart(request: web.Request, key: str) -> tuple[dict[str, Any], str]:
    """The cart and its ETag; raises 404 when there is none."""
    answer = await request.app[SESSIONS].call("GET", key)
    if answer.status != 200:
        raise web.HTTPNotFound(text=f"there is no cart {key}\n")
    return json.loads(answer.body), answer.headers["ETag"]


async def cart_to_change(request: web.Request, key: str, once: str) -> tuple[dict[str, Any], str]:
    """The cart and its ETag; raises 404 when there is none, after which no copy of the request can change one."""
    try:
        return await read_cart(request, key)
    except web.HTTPNotFound:
        answer = await request.app[SESSIONS].call("POST", key, action="refusal", Idempotency_Key=once)
        if answer.repeated:
            return await read_cart(request, key)  # another copy has changed the cart
        raise


@routes.post("/cart")
async def create(request: web.Request) -> web.Response:
    """A new cart. The sidecar draws its key, so that this very member is the one to serve it.

    With an ``Idempotency-Key`` Envoy may send copies of the request, and all of them get the same cart. This shop knows
    no users, so it cannot name one in ``Understudy-Caller``: whoever comes later with the same key, the same client
    or another one, gets a cart of their own. A cart that nobody uses expires.
    """
    answer = await request.app[SESSIONS].call(
        "POST", body={"items": {}}, Idempotency_Key=request.headers.get("Idempotency-Key")
    )
    if answer.status != 201:
        raise web.HTTPBadGateway(text=f"the sidecar made no session: {answer.status}\n")
    key = json.loads(answer.body)["key"]
    response = view(key, {"items": {}}, status=201)
    response.set_cookie("sid", key, httponly=True, samesite="Lax")
    return response


@routes.get("/cart")
async def show(request: web.Request) -> web.Response:
    """The cart as it is."""
    return await view_of(request, session_key(request))


@routes.post("/cart/items")
async def add(request: web.Request) -> web.Response:
    """Add ``{"sku", "quantity"}``, once, however often the request comes with the same key."""
    key = session_key(request)
    sku, quantity = await wanted_item(request)
    given = request.headers.get("Idempotency-Key") or UNDERSTUDY_REQUEST.get() or uuid.uuid4().hex
    # Of the item as well: a client that uses its key for another item means another request.
    once = hashlib.sha256(f"{given}/{quantity}/{sku}".encode()).hexdigest()
    for _ in range(ATTEMPTS):
        cart, etag = await cart_to_change(request, key, once)
        cart["items"][sku] = cart["items"].get(sku, 0) + quantity
        answer = await request.app[SESSIONS].call("PUT", key, cart, If_Match=etag, Idempotency_Key=once)
        if answer.repeated:
            return await view_of(request, key)  # it had its effect the first time, and the cart has it
        if answer.status == 200:
            return view(key, cart)
        if answer.status == 409:  # this is a late copy, or another one was refused
            raise web.HTTPConflict(text=f"the cart was not changed: {answer.problem}\n")
        if answer.status != 412:
            raise web.HTTPBadRequest(text=f"the cart was not stored: {answer.problem}\n")
    raise SidecarError("too many writers at once", sent=False)


async def wanted_item(request: web.Request) -> tuple[str, int]:
    """The item to add; raises 400 on anything else."""
    try:
        body = await request.json()
        sku, quantity = body["sku"], body.get("quantity", 1)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise web.HTTPBadRequest(text='send JSON like {"sku": "tea", "quantity": 1}\n') from None
    if not isinstance(sku, str) or not sku or not isinstance(quantity, int) or not 1 <= quantity <= 999:
        raise web.HTTPBadRequest(text="sku is a text and quantity a number from 1 to 999\n")
    return sku, quantity


@routes.delete("/cart")
async def discard(request: web.Request) -> web.Response:
    """Throw the cart away."""
    key = session_key(request)
    answer = await request.app[SESSIONS].call("DELETE", key, Idempotency_Key=request.headers.get("Idempotency-Key"))
    return web.Response(status=204 if answer.status == 204 else 404)


@routes.get("/healthz")
async def health(_: web.Request) -> web.Response:
    """Whether this process can serve; asked by its sidecar."""
    return web.Response(text="ok\n")


def make_app(url: str, member: str, token: str | None = None) -> web.Application:
    """The application of one member, talking to the sidecar at ``url``, which may want a ``token``."""
    # Without auto_decompress=False aiohttp unpacks compressed bodies of any size before a handler is asked.
    app = web.Application(middlewares=[refuse_compressed, ask_another_member], handler_args={"auto_decompress": False})
    app.add_routes(routes)

    async def sessions(app: web.Application) -> AsyncIterator[None]:
        app[SESSIONS] = Sessions(url, token)
        yield
        await app[SESSIONS].close()

    async def name_the_server(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Served-By"] = member

    app.cleanup_ctx.append(sessions)
    app.on_response_prepare.append(name_the_server)
    return app


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description="A shopping cart whose state is in Understudy sessions.")
    parser.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    options = parser.parse_args()
    told = os.environ.get
    app = make_app(told("UNDERSTUDY_URL", SIDECAR_URL), told("UNDERSTUDY_MEMBER", "unnamed"), told("UNDERSTUDY_TOKEN"))
    web.run_app(app, host=options.host, port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
