"""The headers of a session call: ours are known with known values, or the call is refused; all others are dropped."""

import json
from collections.abc import AsyncIterator, Iterable

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from multidict import CIMultiDict

from understudy.proxy.http.problems import Reply
from understudy.proxy.sessions.call import Call
from understudy.proxy.sessions.request_headers import NAMES, session_headers
from understudy.proxy.sessions.session_api import add_forwarded_calls, session_app
from understudy.statesync.http.headers import APPLICATION_HEADERS
from understudy.statesync.sessions.request_log import REQUEST_HEADER

READ = {"Understudy-Consistency": "stale", "Understudy-Request": "1;a", "If-None-Match": '"1"'}


def refusal_of(sent: Iterable[tuple[str, str]]) -> dict[str, object]:
    """The problem document of the refusal of these headers."""
    refused = session_headers(CIMultiDict(sent))
    assert isinstance(refused, Reply)
    assert refused.status == 400
    document: dict[str, object] = json.loads(refused.body)
    assert str(document["type"]).endswith("/bad-request")
    return document


def test_headers_of_a_session_call_are_taken_whatever_their_case_and_others_are_dropped() -> None:
    sent = CIMultiDict([*READ.items(), ("CONTENT-TYPE", "text/plain"), ("Cookie", "a=b"), ("if-none-match", '"2"')])
    taken = {name.lower(): value for name, value in READ.items()}
    assert session_headers(sent) == {**taken, "content-type": "text/plain"}


def test_a_header_of_ours_that_is_not_known_is_refused_with_the_nearest_name() -> None:
    document = refusal_of([("Understudy-Consistancy", "stale")])
    assert (document["header"], document["value"], document["nearest"]) == (
        "Understudy-Consistancy",
        "stale",
        "Understudy-Consistency",
    )
    assert document["valid"] == list(NAMES)
    assert "Understudy-Consistancy" in str(document["detail"])
    assert "Understudy-Consistency" in str(document["detail"])
    assert refusal_of([("understudy-ttls", "9")])["nearest"] == "Understudy-TTL"
    assert refusal_of([("Understudy-Xyzzyq", "1")])["nearest"] is None


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("Understudy-Consistency", "lineraizable", "linearizable"),
        ("Understudy-Durability", "Sync", "sync"),
        ("Understudy-Durability", "", None),
        ("Understudy-Admin", "True", "true"),
    ],
)
def test_a_value_that_is_not_known_is_refused_with_those_that_are(name: str, value: str, nearest: str | None) -> None:
    document = refusal_of([(name, value)])
    assert (document["header"], document["value"], document["nearest"]) == (name, value, nearest)
    assert document["valid"]


def test_a_long_name_or_value_is_not_repeated_whole() -> None:
    for sent in (("Understudy-" + "x" * 8000, "x" * 8000), ("Understudy-Consistency", "x" * 8000)):
        assert len(json.dumps(refusal_of([sent]))) < 1000


def test_what_envoys_of_a_mesh_add_to_a_request_may_be_passed_on() -> None:
    assert session_headers(CIMultiDict({"x-understudy-order": "10.0.0.1:80", "X-Forwarded-For": "1"})) == {}


def test_the_header_of_admin_calls_is_known_and_never_part_of_a_session_call() -> None:
    assert session_headers(CIMultiDict({"Understudy-Admin": "true"})) == {}


def test_the_names_that_a_refusal_lists_are_those_that_are_known() -> None:
    assert {name.lower() for name in NAMES} == {*APPLICATION_HEADERS, REQUEST_HEADER}


# -- over HTTP --


class Service:
    """A session service that notes the calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def get_now(self, _: Call) -> Reply | None:
        return None

    async def handle(self, call: Call) -> Reply:
        self.calls.append(call)
        return Reply(200)

    create = handle


@pytest.fixture
def service() -> Service:
    return Service()


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[TestClient]:  # type: ignore[type-arg]
    app = session_app(service, lambda: ({"state": "UP", "reason": ""}, True))  # type: ignore[arg-type]
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_the_session_api_refuses_the_header_and_does_nothing(
    client: TestClient,  # type: ignore[type-arg]
    service: Service,
) -> None:
    typo = {"Understudy-Consistency": "lineraizable"}
    for method, path in (
        ("GET", "/v1/sessions/k"),
        ("PUT", "/v1/sessions/k"),
        ("POST", "/v1/sessions"),
        ("POST", "/v1/sessions/k/refusal"),
        ("GET", "/v1/status"),
    ):
        answer = await client.request(method, path, headers=typo)
        document = await answer.json(content_type="application/problem+json")
        assert (answer.status, document["nearest"], path) == (400, "linearizable", path)
    assert service.calls == []
    assert (await client.get("/v1/sessions/k", headers=READ)).status == 200


async def test_a_call_that_a_newer_member_forwards_is_not_refused(service: Service) -> None:
    app = web.Application()
    add_forwarded_calls(app, service)  # type: ignore[arg-type]
    newer = {"Understudy-Hop": "1", "Understudy-New": "x", "Understudy-Consistency": "new", "Understudy-TTL": "9"}
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/peer/v1/sessions/k", headers=newer)).status == 200
    (call,) = service.calls
    assert call.headers == {"understudy-consistency": "new", "understudy-ttl": "9"}
