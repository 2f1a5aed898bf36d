"""A session key that a client chose names a session and nothing else, whatever is in it."""

import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from understudy.deploy.examples.cart import make_app
from understudy.proxy.health.check_registry import CheckRegistry
from understudy.proxy.http.problems import Reply, problem
from understudy.proxy.ownership.drain import DrainApi
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.session_api import session_app
from understudy.proxy.sidecar.checks_api import REGISTERED, ChecksApi
from understudy.statesync.sessions.session import valid_key

HOSTILE = (
    "../checks/db",
    "%2e%2e/checks/db",
    "..%2fchecks%2fdb",
    "../drain?",
    "../../v1/drain?wait=0&x=",
    "../status",
    "..",
    ".",
    "k/refusal",
    "k?x",
    "k#x",
    "//elsewhere/k",
    "%",
)
ITEM = {"sku": "tea"}
ADMIN = {"Understudy-Admin": "true"}


class Sidecar:
    """The session API of a member with one check: its sessions are absent, and it notes the keys that it is asked for.

    It is the service, and the drain, of the API.
    """

    def __init__(self) -> None:
        self.book, self.keys, self.begun = CheckRegistry(), [], False  # type: ignore[var-annotated]
        self.book.register("db", 60, REGISTERED, time.monotonic())

    def get_now(self, _: Call) -> Reply | None:
        return None

    async def handle(self, call: Call) -> Reply:
        self.keys.append(call.key)
        return problem(404, "no-such-session", "") if valid_key(call.key) else problem(400, "bad-key", "")

    async def create(self, _: Call) -> Reply:
        return Reply(201)

    def begin(self) -> None:
        self.begun = True

    def outstanding(self, _: float) -> str:
        return ""

    def result(self) -> tuple[bool, str]:
        return True, ""

    def app(self) -> web.Application:
        app = session_app(self, lambda: ({"state": "UP", "reason": ""}, True))  # type: ignore[arg-type]
        ChecksApi(self.book, list, lambda: None).add_to(app)
        DrainApi(self, lambda: False).add_to(app)  # type: ignore[arg-type]
        return app

    @property
    def untouched(self) -> bool:
        return list(self.book.checks) == ["db"] and not self.begun


@pytest.fixture
def sidecar() -> Sidecar:
    return Sidecar()


@pytest_asyncio.fixture
async def api(sidecar: Sidecar) -> AsyncIterator[str]:
    async with TestServer(sidecar.app()) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


async def status(http: aiohttp.ClientSession, method: str, url: str, **options: Any) -> int:
    async with http.request(method, url, **options) as answer:
        return answer.status


async def test_the_example_asks_for_sessions_alone_whatever_key_its_client_sends(
    sidecar: Sidecar, api: str, http: aiohttp.ClientSession
) -> None:
    async with TestServer(make_app(api, "cart-1")) as shop:
        for key in HOSTILE:
            for method, path in (("GET", "/cart"), ("POST", "/cart/items"), ("DELETE", "/cart")):
                sidecar.keys.clear()
                said = await status(http, method, str(shop.make_url(path)), json=ITEM, headers={"X-Session-Id": key})
                assert said == 404, (key, method)
                assert sidecar.keys, (key, method)
                assert set(sidecar.keys) == {key}, (key, method)
    assert sidecar.untouched


@pytest.mark.parametrize(
    ("method", "path", "body", "done"),
    [
        ("PUT", "/checks/mine", {"deadline_seconds": 10}, 201),
        ("POST", "/checks/db", {"state": "problem"}, 200),
        ("DELETE", "/checks/db", None, 204),
        ("POST", "/drain?wait=0", None, 200),
    ],
)
async def test_an_application_that_does_not_quote_keys_can_still_change_no_more_than_sessions(
    sidecar: Sidecar, api: str, http: aiohttp.ClientSession, method: str, path: str, body: object, done: int
) -> None:
    unquoted = f"{api}/v1/sessions/..{path}"
    for shown in ({}, {"Understudy-Admin": "1"}, {"X-Session-Id": "true"}):
        async with http.request(method, unquoted, json=body, headers=shown) as answer:
            assert answer.url.path.startswith("/v1/checks" if "checks" in path else "/v1/drain")
            assert (answer.status, (await answer.json())["type"].rpartition("/")[2]) == (403, "admin-header-missing")
    assert sidecar.untouched
    assert sidecar.book.checks["db"].reason == ""

    assert await status(http, method, f"{api}/v1{path}", json=body, headers=ADMIN) == done
    assert not sidecar.untouched or sidecar.book.checks["db"].state == "problem"


async def test_sessions_reads_and_what_is_not_there_need_no_such_header(api: str, http: aiohttp.ClientSession) -> None:
    for expected, method, path in (
        (201, "POST", "/v1/sessions"),
        (404, "PUT", "/v1/sessions/k"),
        (404, "POST", "/v1/sessions/k/refusal"),
        (200, "GET", "/v1/checks"),
        (200, "GET", "/v1/status"),
        (200, "GET", "/readyz"),
        (404, "POST", "/v1/nothing"),
        (405, "DELETE", "/v1/status"),
    ):
        assert (path, await status(http, method, api + path)) == (path, expected)


async def test_a_quoted_key_reaches_the_sidecar_as_it_is(
    sidecar: Sidecar, api: str, http: aiohttp.ClientSession
) -> None:
    for key in ("..", "../checks/db", "%2e%2e"):
        url = URL(f"{api}/v1/sessions/{quote(key, safe='')}", encoded=True)
        assert await status(http, "DELETE", url) == 400  # type: ignore[arg-type]
    assert sidecar.keys == ["..", "../checks/db", "%2e%2e"]
