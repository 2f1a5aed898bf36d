"""Users of an example who add items to their carts, and what each of them knows of its cart."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field

import aiohttp

PAUSE = 0.05
"""Seconds between two requests of one user, on average."""


@dataclass
class Shopper:
    """One user, who sends the session cookie that it was given last."""

    http: aiohttp.ClientSession
    url: str
    cookie_name: str
    name: str
    cookie: str | None = None
    acknowledged: list[str] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    longest: float = 0.0
    """Seconds that the slowest answer took."""

    async def shop(self, until: asyncio.Event) -> None:
        """Add items one by one, each once."""
        number = 0
        while not until.is_set():
            number += 1
            await self._add(f"{self.name}-{number}")
            await asyncio.sleep(random.uniform(0, 2 * PAUSE))

    async def _add(self, item: str) -> None:
        begun = asyncio.get_running_loop().time()
        try:
            status, _ = await self._ask("POST", "/add", item=item)
        except (aiohttp.ClientError, TimeoutError):
            status = 0
        self.longest = max(self.longest, asyncio.get_running_loop().time() - begun)
        if status == 200:
            self.acknowledged.append(item)
        elif self.cookie is not None:
            self.unknown.add(item)  # without a cookie it is in a cart that nobody knows

    async def cart(self) -> dict:
        """The cart as the application shows it."""
        status, body = await self._ask("GET", "/")
        assert status == 200, body
        return json.loads(body)

    async def _ask(self, method: str, path: str, **query: str) -> tuple[int, str]:
        sent = {"Cookie": f"{self.cookie_name}={self.cookie}"} if self.cookie is not None else {}
        async with self.http.request(method, self.url + path, params=query, headers=sent) as answer:
            body = await answer.text()
            for line in answer.headers.getall("Set-Cookie", []):
                name, _, rest = line.partition("=")
                if name == self.cookie_name and answer.status == 200:
                    self.cookie = rest.partition(";")[0]
        return answer.status, body

    async def check(self) -> None:
        """The cart has each acknowledged item exactly once, and besides only items whose answer did not come."""
        cart = await self.cart()
        items = Counter(cart["items"])
        assert set(self.acknowledged) - set(items) == set(), f"{self.name} has lost items"
        assert set(items) - set(self.acknowledged) <= self.unknown, f"{self.name} has items of others"
        assert set(items.values()) <= {1}, f"{self.name} has items more than once"
        assert cart["count"] == items.total()
