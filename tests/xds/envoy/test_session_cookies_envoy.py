"""A real Envoy hashes the session id in a web framework's cookie, as sidecars hash it in the keys of its store."""

import base64
import re
import secrets
import uuid
from dataclasses import replace
from pathlib import Path

import pytest_asyncio

from tests.harness.waiting import until
from tests.xds.envoy.served_pool import UNHURRIED, ServedPool, served_pool
from understudy.statesync.pool.session_key import ROUTING_COOKIE, SessionKey
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_versions import Versions, version_cookie
from understudy.xds.envoy.routes import VERSION_GONE
from understudy.xds.envoy.routing_view import VersionsView

SPEC = PoolSpec(
    pool="cart",
    timeouts=UNHURRIED.timeouts,
    retries=UNHURRIED.retries,
    health_checks=UNHURRIED.health_checks,
    session_key=(
        SessionKey(header="x-session-id"),
        SessionKey(preset="express"),
        SessionKey(preset="flask", redis_prefixes=("session:", "starsessions.")),  # both have a cookie of this name
        SessionKey(preset="django"),
        SessionKey(preset="spring"),
        SessionKey(preset="php"),
        SessionKey(cookie="cart", pattern="v2-([0-9a-f]{8})"),
        SessionKey(preset="rails"),
    ),
)
SIGNATURE = "YQ%2BxUfjzHzBKRo0M0a8RZbtQ6OM6Zf%2FvTQvP2VZ1kN0"
SURROUNDINGS = (
    "{}",
    "a=b; {}; c=d",
    'theme=dark;{};lang="de,en"; _ga=GA1.2.3',
    "connect.sid=garbage; xsession=no; sessionid2=a; a=PHPSESSID=b;   {}",
    "bytes=\xff\xfe\x80; {}",
)
MARK = version_cookie("cart")
VERSION_OF = {"cart-1": "v1", "cart-2": "v1", "cart-3": "v2"}
EVERYBODY = {"cart-1", "cart-2", "cart-3"}


def session() -> list[tuple[str, str]]:
    """A cookie of each framework, and the key of its session in the framework's store."""
    plain, java = secrets.token_urlsafe(24), str(uuid.uuid4())
    return [
        (f"connect.sid=s%3A{plain}.{SIGNATURE}", f"sess:{plain}"),
        (f'connect.sid="s%3A{plain}.{SIGNATURE}"', f"sess:{plain}"),
        (f"session={plain}", f"session:{plain}"),
        (f"session={plain}", f"starsessions.{plain}"),
        (f"sessionid={plain}", f":1:django.contrib.sessions.cached_db{plain}"),
        (f"SESSION={base64.b64encode(java.encode()).decode()}", f"spring:session:sessions:{java}"),
        (f"PHPSESSID={plain}", f"PHPREDIS_SESSION:{plain}_LOCK"),
    ]


@pytest_asyncio.fixture
async def front(tmp_path: Path):
    async with served_pool(tmp_path, spec=SPEC) as running:
        yield running


async def test_the_cookies_of_frameworks_lead_to_the_slots_of_their_stores_keys(front: ServedPool):
    for around in SURROUNDINGS:
        for cookie, key in (pair for _ in range(10) for pair in session()):
            answer = await front.request(cookie=around.format(cookie))
            assert answer.text == active_of(front, key), (around, cookie, key)
            assert "set-cookie" not in answer.headers
    await the_next_source_counts_where_a_pattern_does_not_match(front)
    await a_client_without_a_key_gets_a_routing_cookie_once(front)
    await sessions_stay_on_the_version_that_they_began_on(front)
    await sessions_of_a_version_that_is_gone_go_by_declared_choice(front)


async def the_next_source_counts_where_a_pattern_does_not_match(front: ServedPool):
    for _ in range(20):
        key, number = secrets.token_hex(8), secrets.token_hex(4)
        express, cart = f"connect.sid=s%3A{key}.{SIGNATURE}", f"cart=v2-{number}"
        for headers, decides in (
            ({"cookie": f"{cart}; {express}"}, key),
            ({"cookie": f"connect.sid=s%3A{key}; {cart}"}, number),
            ({"cookie": f"cart=v1-{number}; sessionid={key}"}, key),
            ({"cookie": f"{cart}; sessionid={key}"}, key),
            ({"cookie": f"{ROUTING_COOKIE}={key}; {cart}"}, number),
            ({"cookie": f"{express}; {cart}", "x_session_id": number}, number),
        ):
            assert (await front.request(**headers)).text == front.order_of(decides)[0], headers


async def a_client_without_a_key_gets_a_routing_cookie_once(front: ServedPool):
    strangers = [await front.request("POST", "/set-cookie", cookie="connect.sid=garbage; cart=v1") for _ in range(40)]
    assert {answer.text for answer in strangers} == EVERYBODY
    routes = set()
    for answer in strangers:
        application, routing = answer.headers.getall("set-cookie")
        assert application == "basket=3"
        value, attributes = re.fullmatch(rf"{ROUTING_COOKIE}=([^;]+); (.+)", routing).groups()
        assert uuid.UUID(value).version == 4, "random, so it names no address"
        assert attributes == "Path=/; HttpOnly; SameSite=Lax"
        routes.add(value)
    assert len(routes) == len(strangers)
    for value in routes:
        again = [await front.request(cookie=f"a=b; {ROUTING_COOKIE}={value}") for _ in range(2)]
        assert {answer.text for answer in again} == {front.order_of(value)[0]}
        assert all("set-cookie" not in answer.headers for answer in again)


async def sessions_stay_on_the_version_that_they_began_on(front: ServedPool):
    await declare_versions(front, Versions(new_sessions="v2", unmarked="v1"), {"v1": 2, "v2": 1})
    await until(lambda: new_sessions_are_marked(front), timeout=60, what="the new routes")
    assert {(await front.request()).text for _ in range(20)} == {"cart-3"}
    for key in (secrets.token_hex(8) for _ in range(20)):
        old = next(member for member in front.order_of(key) if VERSION_OF[member] == "v1")
        express = f"connect.sid=s%3A{key}.{SIGNATURE}"
        assert (await front.request(x_session_id=key, cookie=f"a=b; {MARK}=v2")).text == "cart-3"
        assert (await front.request(x_session_id=key, cookie=f"{MARK}=v1; a=b")).text == old
        assert (await front.request(x_session_id=key)).text == old
        assert (await front.request(cookie=f"{MARK}=v2; {express}")).text == "cart-3"
        unkeyed = await front.request("POST", cookie=f"{MARK}=v1")
        assert unkeyed.text == "cart-3", "without a session there is nothing to stay for"
    key = front.key_of("cart-1")
    front.kill("cart-1")
    assert (await front.request(x_session_id=key, cookie=f"{MARK}=v1")).text == "cart-2"


async def sessions_of_a_version_that_is_gone_go_by_declared_choice(front: ServedPool):
    old = {"x_session_id": secrets.token_hex(8), "cookie": f"{MARK}=v1"}
    await declare_versions(front, Versions(new_sessions="v2", when_gone="move"), {"v1": 1, "v2": 1})
    front.kill("cart-2")
    await until(lambda: answers(front, "cart-3", **old), timeout=60, what="the new version, before the death is known")
    await declare_versions(front, Versions(new_sessions="v2"), {"v2": 1})
    await until(lambda: answers(front, VERSION_GONE, **old), timeout=60, what="a refusal by Envoy")
    assert (await front.request(x_session_id=old["x_session_id"], cookie=f"{MARK}=v2")).text == "cart-3"
    await declare_versions(front, Versions(new_sessions="v2", when_gone="move"), {"v2": 1})
    await until(lambda: answers(front, "cart-3", **old), timeout=60, what="the new version")
    assert any(c.startswith(f"{MARK}=v2;") for c in (await front.request(**old)).headers.getall("set-cookie"))


async def declare_versions(front: ServedPool, versions: Versions, serving: dict[str, int]) -> None:
    """Have Envoy told of the versions in a spec, and how many members can serve each."""
    spec = front.view.spec.model_copy(update={"versions": versions})
    front.view = replace(front.view, spec=spec, versions=VersionsView(VERSION_OF, serving))
    await front.cache.publish(front.view)


async def new_sessions_are_marked(front: ServedPool) -> bool:
    return any(cookie.startswith(f"{MARK}=v2;") for cookie in (await front.request()).headers.getall("set-cookie"))


async def answers(front: ServedPool, text: str, **headers: str) -> bool:
    return (await front.request(**headers)).text == text


def active_of(front: ServedPool, key: str) -> str:
    """The member that serves a stored key, by the rule that sidecars have."""
    return front.view.orders[SPEC.slot_of_key(key)][0]
