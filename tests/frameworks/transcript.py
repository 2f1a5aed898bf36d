"""What a client of an example sees: the same requests to each application, and its answers without what is random."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from http.cookies import SimpleCookie

import aiohttp

SESSION_SECONDS = 6
"""The lifetime of a session in these tests; only the one that is to end may be left alone for so long."""
LATE = 0.6
"""Seconds by which a member's clock may be behind."""
LARGE = 15
"""Items of 6000 bytes that are more than a session may hold."""


@dataclass
class Browser:
    """A client that sends the session cookie that it was given last, in the words in which it was given."""

    http: aiohttp.ClientSession
    url: str
    cookie_name: str
    cookie: str | None = None
    seen: list[object] = field(default_factory=list)

    async def ask(self, method: str, path: str = "/", **query: str) -> None:
        """Make a request and note its answer."""
        sent = {"Cookie": f"{self.cookie_name}={self.cookie}"} if self.cookie is not None else {}
        async with self.http.request(method, self.url + path, params=query, headers=sent) as answer:
            body = await answer.text()
            given = [self._take(line) for line in answer.headers.getall("Set-Cookie", [])]
        self.seen.append((method, path, query, answer.status, answer.content_type, body, given))

    def _take(self, line: str) -> tuple[str, str, list[str]]:
        """Keep the cookie that is given; its name, what becomes of it, and the names of its attributes."""
        name, _, rest = line.partition("=")
        value, *attributes = rest.split(";")
        morsel = next(iter(SimpleCookie(line).values()))
        gone = not value.strip("'\"") or morsel["max-age"] == "0" or "1970" in morsel["expires"] or value == "deleted"
        what = "gone" if gone else "as sent" if value == self.cookie else "new"
        if name == self.cookie_name:
            self.cookie = None if gone else value
        return name, what, sorted(attribute.strip().partition("=")[0].lower() for attribute in attributes)


async def transcript(url: str, cookie: str) -> dict[str, list[object]]:
    """The story of some clients, by name."""
    async with aiohttp.ClientSession() as http:
        browsers: dict[str, Browser] = {}

        def browser(name: str, sent: str | None = None) -> Browser:
            return browsers.setdefault(name, Browser(http, url, cookie, sent))

        expiring = browser("its session expires")
        await expiring.ask("POST", "/add", item="tea")
        await expiring.ask("GET")
        begun = time.monotonic()

        await _shopping(browser("shops"), browser("shops beside"))
        await _logout(browser("logs out"))
        for stranger in ("unknown0unknown0unknown0unknown0", "a/b|c@d!%7B%22", "x" * 300):
            await _stranger(browser(f"comes with {stranger[:10]}", stranger))

        await asyncio.sleep(begun + SESSION_SECONDS + LATE - time.monotonic())
        kept = expiring.cookie
        await expiring.ask("GET")
        expiring.cookie = kept
        await expiring.ask("POST", "/add", item="coffee")
        await expiring.ask("GET")
        return {name: each.seen for name, each in browsers.items()}


async def _shopping(one: Browser, other: Browser) -> None:
    await one.ask("GET")
    await one.ask("POST", "/logout")
    for item in ("tea", "Käse & Brot €", "x" * 3000, ""):
        await one.ask("POST", "/add", item=item)
        await other.ask("POST", "/add", item=f"other {item}")
    await one.ask("GET")
    await other.ask("GET")


async def _logout(one: Browser) -> None:
    await one.ask("POST", "/add", item="tea")
    old = one.cookie
    await one.ask("POST", "/logout")
    await one.ask("GET")
    one.cookie = old
    await one.ask("GET")
    one.cookie = old
    await one.ask("POST", "/add", item="coffee")
    await one.ask("GET")


async def _stranger(one: Browser) -> None:
    sent = one.cookie
    await one.ask("GET")
    one.cookie = sent
    await one.ask("POST", "/add", item="tea")
    await one.ask("GET")


async def refused(url: str, cookie: str) -> tuple[int, int]:
    """How many items an example has acknowledged before the first that it did not, and how many it has kept then.

    A session becomes larger than a sidecar takes.
    """
    async with aiohttp.ClientSession() as http:
        browser = Browser(http, url, cookie)
        for acknowledged in range(LARGE):
            await browser.ask("POST", "/add", item="x" * 6000)
            if browser.seen[-1][3] != 200:
                await browser.ask("GET")
                return acknowledged, json.loads(browser.seen[-1][5])["count"]
    raise AssertionError("no write was refused")
