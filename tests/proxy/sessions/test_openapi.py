"""``/openapi.json`` describes the session API as it is: its routes, its headers, all answers of a running sidecar."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from yarl import URL

from tests.harness.etcd import EtcdServer
from tests.harness.examples import examples
from tests.harness.secrets import write_secret
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy import __version__
from understudy.proxy.http.problems import TITLES, TYPE_PREFIX
from understudy.proxy.sessions.request_headers import CARRIED, NAMES
from understudy.proxy.sessions.session_api import description
from understudy.proxy.sidecar.sidecar import _session_side

TOKEN = {"Authorization": "Bearer 0123456789abcdef"}
ADMIN = {**TOKEN, "Understudy-Admin": "true"}
MERGE = {**TOKEN, "Content-Type": "application/merge-patch+json"}
JSON = {**TOKEN, "Content-Type": "application/json"}
DESCRIBED = {"etag", "location", "retry-after", "www-authenticate", "accept-encoding"}
"""The answer's headers, besides our own, that must be described."""
ELSEWHERE = {"overwrite", "not-owner", "not-a-peer", "not-held", "replicated", "not-found", "method-not-allowed"}
"""Problems of the Redis port and of the peer API, and of paths and methods that are not described."""


@dataclass(frozen=True)
class Sent:
    """One call: ``path`` is the described one, ``name`` what stands in the braces."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=lambda: TOKEN)
    body: bytes = b""
    name: str = "k"
    query: str = ""


class Description:
    """An OpenAPI document, as a reader of it understands it."""

    def __init__(self, text: bytes) -> None:
        self.document = json.loads(text)
        self.operations = {
            (method.upper(), path): operation
            for path, item in self.document["paths"].items()
            for method, operation in item.items()
            if method != "parameters"
        }

    def at(self, part: dict[str, Any]) -> dict[str, Any]:
        """What a part refers to."""
        while "$ref" in part and len(part) == 1:
            part = self.resolved(part["$ref"])
        return part

    def resolved(self, reference: str) -> dict[str, Any]:
        """What a reference names."""
        part = self.document
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]
        return part

    def parts(self, part: object) -> Iterator[dict[str, Any]]:
        """Every object in a part, also those that it refers to by being there."""
        if isinstance(part, dict):
            yield part
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from self.parts(inner)

    def fault(self, sent: Sent, status: int, headers: Mapping[str, str], body: bytes) -> str:
        """How an answer differs from its description; '' if it does not."""
        responses = self.operations[sent.method, sent.path]["responses"]
        if str(status) not in responses:
            return f"{status} is not described"
        response = self.at(responses[str(status)])
        known = {name.lower(): self.at(part) for name, part in response.get("headers", {}).items()}
        for name, value in headers.items():
            if not (name.startswith("understudy-") or name in DESCRIBED):
                continue
            if name not in known:
                return f"{name} is not described for {status}"
            whole = known[name]["schema"].get("type") == "integer"
            if fault := self._mismatch(known[name]["schema"], int(value) if whole else value):
                return f"{name}: {fault}"
        if sent.method == "HEAD":
            return ""
        return self._content_fault(response.get("content", {}), headers, body)

    def _content_fault(self, content: dict[str, Any], headers: Mapping[str, str], body: bytes) -> str:
        if not body:
            return "" if not content or "*/*" in content else "the content is missing"
        kind = headers["content-type"].partition(";")[0]
        if kind not in content:
            return "" if "*/*" in content else f"content of type {kind} is not described"
        return self._mismatch(content[kind]["schema"], json.loads(body) if kind.endswith("json") else body.decode())

    def _mismatch(self, schema: dict[str, Any], value: object) -> str:
        """Why a value does not fit a schema of the document; '' if it does."""
        rooted = {**schema, "components": self.document["components"]}
        return "; ".join(
            f"{error.json_path}: {error.message}" for error in Draft202012Validator(rooted).iter_errors(value)
        )


OURS = Description(description())


# -- the document alone --


def test_every_route_of_the_session_api_is_described_and_no_other() -> None:
    app = _session_side(MagicMock(), MagicMock(tokens=None), MagicMock())
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    assert routes == set(OURS.operations)


def test_every_header_that_a_call_may_have_is_described_and_no_other_of_ours() -> None:
    parts = OURS.document["components"]["parameters"].values()
    described = {part["name"] for part in parts if part["in"] == "header"}
    assert {name.lower() for name in described} == {*CARRIED, "understudy-admin"} - {"content-type"}
    assert {name for name in described if name.startswith("Understudy")} == set(NAMES)


def test_every_type_of_a_problem_is_described_and_no_other() -> None:
    listed = [
        part["properties"]["type"]["enum"] for part in OURS.parts(OURS.document) if "$ref" in part and len(part) > 1
    ]
    described = {one.removeprefix(TYPE_PREFIX) for types in listed for one in types}
    assert described == set(TITLES) - ELSEWHERE | {"cross-site", "encoded-body"}


def test_every_reference_leads_somewhere_and_every_part_is_referred_to() -> None:
    referred = {part["$ref"] for part in OURS.parts(OURS.document) if "$ref" in part}
    assert all(OURS.resolved(reference) for reference in referred)
    components = OURS.document["components"]
    there = {
        f"#/components/{kind}/{name}" for kind in components if kind != "securitySchemes" for name in components[kind]
    }
    assert there == referred


def test_the_document_is_of_this_version_and_its_schemas_are_schemas() -> None:
    assert (OURS.document["openapi"], OURS.document["info"]["version"]) == ("3.1.0", __version__)
    for schema in OURS.document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    names = [operation["operationId"] for operation in OURS.operations.values()]
    assert len(set(names)) == len(names)


# -- a running sidecar --

SESSION, REFUSAL, CHECK = "/v1/sessions/{key}", "/v1/sessions/{key}/refusal", "/v1/checks/{name}"
ONCE = {**TOKEN, "Idempotency-Key": "w1"}
JOURNEY: tuple[tuple[int, Sent], ...] = (
    *((200, Sent(method, "/openapi.json")) for method in ("GET", "HEAD")),
    *((200, Sent(method, path, {})) for method in ("GET", "HEAD") for path in ("/healthz", "/readyz")),
    *((200, Sent(method, path)) for method in ("GET", "HEAD") for path in ("/v1/status", "/v1/checks")),
    *((401, Sent(method, path, {})) for method in ("GET", "HEAD") for path in ("/openapi.json", "/v1/status")),
    (201, Sent("POST", "/v1/sessions", JSON, b"{}")),
    (201, Sent("PUT", SESSION, JSON, b"{}")),
    (200, Sent("PUT", SESSION, ONCE, b"{}")),
    (200, Sent("PUT", SESSION, ONCE, b"{}")),
    (422, Sent("PUT", SESSION, ONCE, b"{1}")),
    (200, Sent("POST", REFUSAL, ONCE)),
    (204, Sent("POST", REFUSAL, {**TOKEN, "Idempotency-Key": "w2"})),
    (409, Sent("PUT", SESSION, {**TOKEN, "Idempotency-Key": "w2"})),
    (200, Sent("GET", SESSION)),
    (200, Sent("GET", SESSION, {**TOKEN, "Understudy-Consistency": "stale"})),
    (304, Sent("GET", SESSION, {**TOKEN, "If-None-Match": "*"})),
    (200, Sent("PATCH", SESSION, MERGE, b'{"a": 1}')),
    (415, Sent("PATCH", SESSION, JSON, b"{}")),
    (422, Sent("PATCH", SESSION, MERGE, b"{")),
    (412, Sent("DELETE", SESSION, {**TOKEN, "If-None-Match": "*"})),
    (204, Sent("DELETE", SESSION)),
    (404, Sent("DELETE", SESSION)),
    (404, Sent("GET", SESSION)),
    (404, Sent("GET", SESSION, {**TOKEN, "Understudy-Consistency": "stale"})),
    (409, Sent("PUT", SESSION, {**TOKEN, "Understudy-Request": "1.000;old"})),
    (413, Sent("PUT", SESSION, TOKEN, b"x" * 70_000)),
    (413, Sent("PUT", SESSION, TOKEN, b"x" * 1_200_000)),
    (415, Sent("PUT", SESSION, {**TOKEN, "Content-Encoding": "br"}, b"x")),
    (403, Sent("PUT", SESSION, {**TOKEN, "Origin": "http://x"}, b"x")),
    (403, Sent("PUT", CHECK, TOKEN, b'{"deadline_seconds": 9}')),
    (201, Sent("PUT", CHECK, ADMIN, b'{"deadline_seconds": 9}')),
    (200, Sent("PUT", CHECK, ADMIN, b'{"deadline_seconds": 9}')),
    (200, Sent("POST", CHECK, ADMIN, b'{"state": "ok"}')),
    (200, Sent("GET", "/v1/checks")),
    (204, Sent("DELETE", CHECK, ADMIN)),
    (404, Sent("DELETE", CHECK, ADMIN)),
    (400, Sent("POST", "/v1/drain", ADMIN, query="wait=-1")),
    (403, Sent("POST", "/v1/drain")),
)
LAST = Sent("POST", "/v1/drain", ADMIN, query="until=handed-over")
"""It cannot be taken back, so it comes after all others."""

HEADERS = {
    "Content-Type": ("application/json", "application/merge-patch+json", "text/plain"),
    "If-Match": ("*", '"1"', "x"),
    "If-None-Match": ("*", '"1"'),
    "Idempotency-Key": ("a", "b", "", "x" * 256),
    "Understudy-Request": ("1.000;old", "9999999999.0;new", "none"),
    "Understudy-Caller": ("anna", "", "x" * 256),
    "Understudy-TTL": ("1", "60", "0", "soon"),
    "Understudy-Consistency": ("linearizable", "stale", "lineraizable"),
    "Understudy-Durability": ("sync", "async", "none"),
    "Understudy-Admin": ("true", "false"),
    "Understudy-Unknown": ("x",),
    "Content-Encoding": ("gzip", "identity"),
    "Sec-Fetch-Site": ("cross-site", "none"),
    "traceparent": ("x",),
}
BODIES = (b"", b"{}", b"{", b'{"a": null}', b'{"deadline_seconds": 5}', b'{"state": "problem"}', b"x" * 70_000)


@st.composite
def calls(draw: st.DrawFn) -> Sent:
    """A call to one of the described operations, with headers and content of which some are wrong."""
    method, path = draw(st.sampled_from(sorted(OURS.operations)))
    chosen = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=4, unique=True))
    headers = {name: draw(st.sampled_from(HEADERS[name])) for name in chosen}
    shown = draw(st.sampled_from([TOKEN, TOKEN, TOKEN, TOKEN, {}]))
    query = "wait=-1" if path == "/v1/drain" else ""
    name = draw(st.sampled_from(("k", "other", "no%20key", "%2e%2e", "x" * 300)))
    body = draw(st.sampled_from(BODIES)) if method not in ("GET", "HEAD") else b""
    return Sent(method, path, {**headers, **shown}, body, name, query)


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str, tmp_path: Path) -> AsyncIterator[SidecarPool]:
    async with sidecar_pool(etcd, pool_name) as pool:
        pool.logs = tmp_path
        write_secret(tmp_path / "tokens", TOKEN["Authorization"].partition(" ")[2])
        pool.flags = lambda _: ["--session-token-file", tmp_path / "tokens"]
        await pool.start("a")
        await pool.write_table((("a",),))
        yield pool


async def answer_to(pool: SidecarPool, sent: Sent) -> tuple[int, dict[str, str], bytes]:
    path = sent.path.replace("{key}", sent.name).replace("{name}", sent.name)
    url = URL(f"http://{pool.members['a'].api}{path}?{sent.query}".rstrip("?"), encoded=True)
    async with pool.http.request(
        sent.method, url, headers=sent.headers, data=sent.body or None, skip_auto_headers=("Content-Type",)
    ) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()


async def test_every_answer_of_a_running_sidecar_is_described(pool: SidecarPool) -> None:
    async def serves() -> bool:
        return (await answer_to(pool, Sent("GET", SESSION)))[0] == 404

    await until(serves, what="the slots are claimed")
    served = Description((await answer_to(pool, Sent("GET", "/openapi.json")))[2])
    assert served.document == OURS.document
    good: set[tuple[str, str]] = set()

    async def judge(sent: Sent) -> int:
        status, headers, body = await answer_to(pool, sent)
        fault = OURS.fault(sent, status, headers, body)
        assert not fault, (fault, sent, status, headers, body[:500])
        if status < 300:
            good.add((sent.method, sent.path))
        return status

    for expected, sent in JOURNEY:
        assert await judge(sent) == expected, sent

    loop = asyncio.get_running_loop()

    @settings(max_examples=examples(250), suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(calls())
    def generated(sent: Sent) -> None:
        assert asyncio.run_coroutine_threadsafe(judge(sent), loop).result(30) != 500

    await asyncio.to_thread(generated)
    assert await judge(LAST) == 200
    assert good == set(OURS.operations), "each described operation can succeed"
