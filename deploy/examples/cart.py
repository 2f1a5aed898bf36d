"""A shopping cart without state in its own memory: an example to copy.

All state is in sessions, which the sidecar replicates. So any member can answer any request, and a killed member loses
nothing. The application follows these rules, each in a few lines below:

- It reads with the ETag and writes with ``If-Match``. If another writer was faster (412), it reads again.
- It passes ``Understudy-Request`` on with every call. Envoy sets this header to the same value on all copies of a
  request, and the sidecar lets only one copy take effect, even if another arrives late.
- It passes the client's ``Idempotency-Key`` on with the write, so that a request that the client repeats takes effect
  only once.
- Before it refuses a request because of what it read, it tells the sidecar. Then no late copy of the refused request
  can take effect.
- It quotes the client's session key in the path of a call, so that ``../checks/db`` is a bad key and not another path.
- It passes ``traceparent`` on, so that a failover's trace has the last request before it and the first one after it.
- It answers ``understudy-retry: safe`` if Envoy may send the request to another member.

Run it with ``python -m understudy.deploy.examples.cart --port 8000``. ``UNDERSTUDY_URL`` is the URL of the sidecar's
session API, ``UNDERSTUDY_TOKEN`` the token for it, if it needs one.
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
"""From the current request. An HTTP client with OpenTelemetry instrumentation passes it on by itself."""
UNDERSTUDY_REQUEST: ContextVar[str | None] = ContextVar("understudy-request", default=None)
"""Identifies the request that this is a copy of, and its start time."""
SIDECAR_URL = "http://127.0.0.1:7600"
ATTEMPTS = 10
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
routes = web.RouteTableDef()


@dataclass(frozen=True)
class SidecarResponse:
    """A response of the sidecar."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def repeated(self) -> bool:
        """Whether a write with this idempotency key had taken effect before."""
        return "Understudy-Repeated" in self.headers

    @property
    def problem(self) -> str:
        """The last part of the problem's type (RFC 9457), e.g. ``no-such-session``."""
        kind: str = json.loads(self.body).get("type", "")
        return kind.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]


class SidecarError(Exception):
    """The sidecar gave no usable answer. ``sent``: a write may have reached it, so its outcome is unknown."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Sessions:
    """A client of the sidecar's session API, with the calls that a cart needs."""

    def __init__(self, url: str, token: str | None = None) -> None:
        unix = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._base = "http://sidecar" if unix else url.rstrip("/")
        connector = aiohttp.UnixConnector(unix) if unix else aiohttp.TCPConnector(limit=0)
        shown = {"Authorization": f"Bearer {token}"} if token else None
        self._http = aiohttp.ClientSession(connector=connector, headers=shown, timeout=aiohttp.ClientTimeout(total=8))
        # aiohttp sends a PUT or DELETE again if the connection breaks before the answer. If the sidecar is gone then,
        # the error says that it could not be reached, although it may have carried the first one out.
        self._http._retry_connection = False  # noqa: SLF001 - there is no public setting

    async def call(
        self, method: str, key: str = "", body: object = None, *, action: str = "", **headers: str | None
    ) -> SidecarResponse:
        """Make one call. Raises :class:`SidecarError`. ``If_Match="x"`` sends the header ``If-Match: x``.

        ``action`` comes after the key in the path.
        """
        values = {"traceparent": TRACEPARENT.get(), "Understudy-Request": UNDERSTUDY_REQUEST.get(), **headers}
        sent = {name.replace("_", "-"): value for name, value in values.items() if value is not None}
        parts = [quote(part, safe="", errors="surrogateescape") for part in (key, action) if part]
        # encoded=True: otherwise aiohttp would resolve "..".
        url = URL("/".join([f"{self._base}/v1/sessions", *parts]), encoded=True)
        try:
            async with self._http.request(method, url, json=body, headers=sent) as response:
                answer = SidecarResponse(response.status, response.headers, await response.read())
        except aiohttp.ClientConnectorError:
            raise SidecarError("the sidecar cannot be reached", sent=False) from None
        except (aiohttp.ClientError, TimeoutError):
            raise SidecarError("the connection to the sidecar was lost during the call", sent=method != "GET") from None
        if answer.status >= 500:
            raise SidecarError(f"the sidecar answered {answer.status}", sent=method != "GET")
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


SESSIONS = web.AppKey("SESSIONS", Sessions)


@web.middleware
async def ask_another_member(request: web.Request, handler: Handler) -> web.StreamResponse:
    """SidecarResponse 503 without a sidecar, and tell Envoy whether it may ask the next member.

    It may if nothing was written, or if a repetition does no harm: for reads, and for requests with an
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
    """SidecarResponse 415 to compressed bodies, because a small one may become very large."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(text="send the body without Content-Encoding\n")
    return await handler(request)


def session_key(request: web.Request) -> str:
    """The client's session key. The header wins over the cookie, as in the pool's spec."""
    key = request.headers.get("X-Session-Id") or request.cookies.get("sid")
    if not key:
        raise web.HTTPBadRequest(
            text="no session yet: create one with POST /cart, then send X-Session-Id or cookie sid\n"
        )
    return key


def view(key: str, cart: dict[str, Any], etag: str, *, status: int = 200) -> web.Response:
    """A cart as a response to the client, with the version of its session as ETag."""
    return web.json_response({"session": key, **cart}, status=status, headers={"X-Session-Id": key, "ETag": etag})


async def view_of(request: web.Request, key: str) -> web.Response:
    """Read the cart and show it."""
    cart, etag = await read_cart(request, key)
    return view(key, cart, etag)


async def read_cart(request: web.Request, key: str) -> tuple[dict[str, Any], str]:
    """The cart and its ETag. Raises 404 if there is none."""
    answer = await request.app[SESSIONS].call("GET", key)
    if answer.status != 200:
        raise web.HTTPNotFound(text=f"there is no cart {key}\n")
    return json.loads(answer.body), answer.headers["ETag"]


async def cart_to_change(request: web.Request, key: str, once: str) -> tuple[dict[str, Any], str]:
    """The cart and its ETag. Raises 404 if there is none; then no copy of the request can change a cart."""
    try:
        return await read_cart(request, key)
    except web.HTTPNotFound:
        answer = await request.app[SESSIONS].call("POST", key, action="refusal", Idempotency_Key=once)
        if answer.repeated:
            return await read_cart(request, key)  # another copy of the request has changed the cart
        raise


@routes.post("/cart")
async def create(request: web.Request) -> web.Response:
    """Create a cart. The sidecar chooses its key, so that this member serves it.

    With an ``Idempotency-Key`` Envoy may send copies of the request, and all of them get the same cart. This shop has
    no users, so it sends no ``Understudy-Caller``: a later request with the same key gets another cart. An unused cart
    expires.
    """
    answer = await request.app[SESSIONS].call(
        "POST", body={"items": {}}, Idempotency_Key=request.headers.get("Idempotency-Key")
    )
    if answer.status != 201:
        raise web.HTTPBadGateway(text=f"the sidecar created no session: {answer.status}\n")
    key = json.loads(answer.body)["key"]
    response = view(key, {"items": {}}, answer.headers["ETag"], status=201)
    response.set_cookie("sid", key, httponly=True, samesite="Lax")
    return response


@routes.get("/cart")
async def show(request: web.Request) -> web.Response:
    """Show the cart."""
    return await view_of(request, session_key(request))


@routes.post("/cart/items")
async def add(request: web.Request) -> web.Response:
    """Add ``{"sku", "quantity"}``, only once for all requests with the same key."""
    key = session_key(request)
    sku, quantity = await wanted_item(request)
    given = request.headers.get("Idempotency-Key") or UNDERSTUDY_REQUEST.get() or uuid.uuid4().hex
    # The item is part of it: the same key with another item is another request.
    once = hashlib.sha256(f"{given}/{quantity}/{sku}".encode()).hexdigest()
    for _ in range(ATTEMPTS):
        cart, etag = await cart_to_change(request, key, once)
        cart["items"][sku] = cart["items"].get(sku, 0) + quantity
        answer = await request.app[SESSIONS].call("PUT", key, cart, If_Match=etag, Idempotency_Key=once)
        if answer.repeated:
            return await view_of(request, key)  # it has taken effect before, and the cart has the item
        if answer.status == 200:
            return view(key, cart, answer.headers["ETag"])
        if answer.status == 409:  # this is a late copy, or another copy was refused
            raise web.HTTPConflict(text=f"the cart was not changed: {answer.problem}\n")
        if answer.status != 412:
            raise web.HTTPBadRequest(text=f"the cart was not stored: {answer.problem}\n")
    raise SidecarError("too many writers at once", sent=False)


async def wanted_item(request: web.Request) -> tuple[str, int]:
    """The item to add. Raises 400 if it is not valid."""
    try:
        body = await request.json()
        sku, quantity = body["sku"], body.get("quantity", 1)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise web.HTTPBadRequest(text='send JSON like {"sku": "tea", "quantity": 1}\n') from None
    if not isinstance(sku, str) or not sku or not isinstance(quantity, int) or not 1 <= quantity <= 999:
        raise web.HTTPBadRequest(text="sku must be a text, and quantity a number from 1 to 999\n")
    return sku, quantity


@routes.delete("/cart")
async def discard(request: web.Request) -> web.Response:
    """Delete the cart."""
    key = session_key(request)
    answer = await request.app[SESSIONS].call("DELETE", key, Idempotency_Key=request.headers.get("Idempotency-Key"))
    return web.Response(status=204 if answer.status == 204 else 404)


@routes.get("/healthz")
async def health(_: web.Request) -> web.Response:
    """The health path, which the sidecar checks."""
    return web.Response(text="ok\n")


def make_app(url: str, member: str, token: str | None = None) -> web.Application:
    """The application of one member, with the sidecar at ``url``; ``token`` is for its session API."""
    # Without auto_decompress=False, aiohttp decompresses bodies of any size before a handler is called.
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
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description="A shopping cart whose state is in Understudy sessions.")
    parser.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    options = parser.parse_args()
    env = os.environ.get
    app = make_app(env("UNDERSTUDY_URL", SIDECAR_URL), env("UNDERSTUDY_MEMBER", "unnamed"), env("UNDERSTUDY_TOKEN"))
    web.run_app(app, host=options.host, port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
