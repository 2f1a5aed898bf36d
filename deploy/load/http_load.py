"""HTTP clients of the example cart at a constant rate. Each client has one cart and never retries a request.

Every request is recorded as its client saw it, for ``history_checker``. Half of the clients send their session key in a
header, the other half in a cookie.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import aiohttp

from understudy.deploy.common.errors import DeployError
from understudy.deploy.load.history_checker import Content, Op, OpKind
from understudy.deploy.load.open_loop import OpenLoop

ANSWER_TIMEOUT = 10.0
"""Seconds that a client waits for an answer."""


@dataclass(slots=True)
class Shopper:
    """One client: its number, its session key once it has one, its number of writes, and the member that serves it."""

    number: int
    key: str = ""
    writes: int = 0
    served_by: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """How this client sends its session key."""
        return {"X-Session-Id": self.key} if self.number % 2 == 0 else {"Cookie": f"sid={self.key}"}


@dataclass(slots=True)
class Load:
    """A load on ``url``; ``clock`` gives the monotonic seconds in all records."""

    url: str
    sessions: int = 200
    rate: float = 300.0
    clock: Callable[[], float] = time.monotonic
    history: list[Op] = field(default_factory=list)
    shoppers: list[Shopper] = field(default_factory=list)
    drives: ClassVar[str] = "the example cart (POST /cart)"
    _http: aiohttp.ClientSession | None = None
    _open_loop: OpenLoop = field(init=False)

    def __post_init__(self) -> None:
        self._open_loop = OpenLoop(self.sessions, self.rate, self.clock)

    @property
    def pacing(self) -> float:
        """Seconds between two requests of one session."""
        return self._open_loop.between

    @property
    def late(self) -> float:
        """The largest delay of the start of a request, in seconds."""
        return self._open_loop.late

    def connect(self) -> None:
        """Get ready for requests."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=100, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT),
        )
        # aiohttp would repeat a GET after a lost connection. Here that must count as a failure.
        self._http._retry_connection = False  # noqa: SLF001 - there is no public setting

    async def open_sessions(self, *, at_once: int = 10) -> None:
        """Create the cart of every client. Raises :class:`DeployError` if one cannot be created."""
        self.connect()
        gate = asyncio.Semaphore(at_once)

        async def enter(number: int) -> Shopper:
            async with gate:
                shopper = Shopper(number)
                await self._create(shopper)
                return shopper

        self.shoppers = list(await asyncio.gather(*(enter(number) for number in range(self.sessions))))

    def start(self) -> None:
        """Start the requests."""
        self._open_loop.start(self._shop)

    async def stop(self) -> None:
        """Start no new requests, and wait for the answers to the others."""
        await self._open_loop.stop()

    async def final_contents(self) -> Mapping[str, Content | None]:
        """Read every cart once more, as its client; None if that failed."""
        gate = asyncio.Semaphore(10)

        async def read(shopper: Shopper) -> tuple[str, Content | None]:
            async with gate:
                op = await self._request(shopper, "check", "GET", "/cart")
            return shopper.key, op.seen if op.succeeded else None

        return dict(await asyncio.gather(*(read(shopper) for shopper in self.shoppers)))

    async def close(self) -> None:
        """Cancel all requests and close the connections."""
        await self._open_loop.cancel()
        if self._http is not None:
            await self._http.close()

    async def _create(self, shopper: Shopper) -> None:
        op = await self._request(shopper, "create", "POST", "/cart", once=uuid.uuid4().hex)
        if not shopper.key:
            raise DeployError(f"a client got no cart from {self.url}: {op.status or ''} {op.error}".strip())

    async def _shop(self, number: int, writes: bool) -> None:
        shopper = self.shoppers[number]
        if not writes:
            await self._request(shopper, "read", "GET", "/cart")
        else:
            await self.add_item(number)

    async def add_item(self, number: int) -> int:
        """One write of a client; returns the status of the answer, 0 for none."""
        shopper = self.shoppers[number]
        shopper.writes += 1
        sku = f"{shopper.number:03d}-{shopper.writes:04d}"
        item = {"sku": sku, "quantity": 1}
        op = await self._request(shopper, "write", "POST", "/cart/items", item=item, once=f"{shopper.key}-{sku}")
        return op.status

    async def _request(
        self,
        shopper: Shopper,
        kind: OpKind,
        method: str,
        path: str,
        *,
        item: dict[str, Any] | None = None,
        once: str | None = None,
    ) -> Op:
        headers = shopper.headers if shopper.key else {}
        if once is not None:
            headers["Idempotency-Key"] = once
        status, served_by, error, body, attempts, version = 0, "", "", {}, 1, ""
        started = self.clock()
        try:
            async with self._session.request(method, self.url + path, json=item, headers=headers) as response:
                status, served_by = response.status, response.headers.get("X-Served-By", "")
                version = response.headers.get("ETag", "")
                attempts = int(response.headers.get("X-Envoy-Attempt-Count", 1))
                if 200 <= status < 300:
                    body = await response.json()
                else:
                    error = (await response.text())[:200].strip()
        except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
            status, error = 0, f"{type(fault).__name__}: {fault}"
        ended = self.clock()
        shopper.key = shopper.key or body.get("session", "")
        if served_by:
            shopper.served_by = served_by
        op = Op(
            session=shopper.key,
            kind=kind,
            started=started,
            ended=ended,
            status=status,
            served_by=served_by,
            attempts=attempts,
            wrote=item["sku"] if item else "",
            seen=body.get("items"),
            error=error,
            version=version,
        )
        self.history.append(op)
        return op

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("the sessions are not open yet")
        return self._http
