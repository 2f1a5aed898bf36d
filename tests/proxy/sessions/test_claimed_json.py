"""A body that claims to be JSON and is not is refused before it becomes a session."""

import json

import pytest
from aiohttp.test_utils import TestClient, TestServer

from understudy.proxy.http.problems import Reply
from understudy.proxy.sessions.call import Call, claim_fault
from understudy.proxy.sessions.session_api import session_app

CLAIMS = (
    "application/json",
    "Application/JSON; charset=utf-8",
    "application/merge-patch+json",
    "application/a+JSON ;v=1",
)


@pytest.mark.parametrize("content_type", CLAIMS)
def test_a_claim_of_json_is_checked(content_type: str) -> None:
    refused = claim_fault({"content-type": content_type}, b'{"secret": 1')
    assert refused is not None
    document = json.loads(refused.body)
    assert (refused.status, document["type"].rpartition("/")[2]) == (400, "not-json")
    assert "line 1, column 13" in document["detail"]
    assert "secret" not in document["detail"]
    assert claim_fault({"content-type": content_type}, b'{"secret": 1}') is None


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, b"NaN", b'"\xff"', b"1e400", b"{}{}"])
def test_what_no_reader_of_json_takes_is_refused(body: bytes) -> None:
    assert claim_fault({"content-type": "application/json"}, body) is not None


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "application/jsonl", "text/json"])
def test_any_other_content_is_taken_as_it_is(content_type: str) -> None:
    assert claim_fault({"content-type": content_type}, b"{") is None
    assert claim_fault({}, b"{") is None


class Service:
    """A session service that takes every call."""

    def get_now(self, _: Call) -> Reply | None:
        return None

    async def handle(self, _: Call) -> Reply:
        return Reply(200)

    create = handle


async def test_puts_and_posts_are_checked_up_to_the_size_of_a_session() -> None:
    app = session_app(Service(), lambda: ({}, True), None, lambda: 100)  # type: ignore[arg-type]
    headers = {"Content-Type": "application/json"}
    async with TestClient(TestServer(app)) as client:

        async def status(method: str, path: str, size: int = 1) -> int:
            return (await client.request(method, path, data=b"{" * size, headers=headers)).status

        assert [await status("PUT", "/v1/sessions/k"), await status("POST", "/v1/sessions")] == [400, 400]
        assert [await status("PUT", "/v1/sessions/k", 101), await status("POST", "/v1/sessions", 101)] == [200, 200]
        assert [await status(method, "/v1/sessions/k") for method in ("PATCH", "DELETE", "GET")] == [200, 200, 200]
        assert await status("POST", "/v1/sessions/k/refusal") == 200
