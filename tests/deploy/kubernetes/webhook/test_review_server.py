"""The injector as API servers meet it: a process behind HTTPS that is sent reviews, good ones and all others."""

import asyncio
import contextlib
import copy
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.deploy.kubernetes.injection.harness import NEWEST, OLDEST, patched, review, sidecars, validate
from tests.deploy.kubernetes.injection.shapes import SHAPES, Shape, pod
from tests.harness.bombs import Target, require_unharmed
from tests.harness.certificates import Authority
from tests.harness.forkserver import forked
from tests.harness.places import ROOT
from tests.harness.processes import bound_to
from tests.harness.waiting import free_port, until

HOST = "understudy-injector.understudy-system.svc"


@dataclass
class Injector:
    """A running injector, and how it is dialled."""

    port: int
    metrics: int
    process: subprocess.Popen[bytes]
    log: Path
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Injector]:
    with started(tmp_path_factory.mktemp("injector"), forked) as running:
        yield running


@contextlib.contextmanager
def started(home: Path, how: Callable[[Sequence[str]], list[str]]) -> Iterator[Injector]:
    """An injector's process, until the end of the block."""
    authority = Authority(home / "authority")
    identity = authority.issue("tls", f"DNS:{HOST}", use="serverAuth")
    for file, name in ((identity.cert, "tls.crt"), (identity.key, "tls.key")):
        shutil.copy(file, home / name)  # with its permissions
    port, metrics = free_port(), free_port()
    command = [
        *(
            sys.executable,
            "-m",
            "understudy.deploy.cli",
            "injector",
            "--listen",
            f"127.0.0.1:{port}",
            "--cert-dir",
            str(home),
        ),
        *("--metrics", f"127.0.0.1:{metrics}", "--sidecar-image", "understudy-sidecar:test", "--etcd", "etcd:2379"),
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(how(command), cwd=ROOT, stderr=log)
    try:
        yield Injector(port, metrics, process, home / "log", ssl.create_default_context(cafile=str(identity.ca)))
    finally:
        process.kill()
        process.wait()


@dataclass
class Client:
    """An API server's side."""

    injector: Injector
    http: aiohttp.ClientSession

    async def post(self, body: Any, *, path: str = "/mutate", **headers: str) -> tuple[int, dict[str, Any]]:
        url = f"https://127.0.0.1:{self.injector.port}{path}"
        sent = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        async with self.http.post(
            url, data=body, headers=sent, ssl=self.injector.context, server_hostname=HOST
        ) as answer:
            return answer.status, json.loads(await answer.read())

    async def review(self, pod: Any, **request: Any) -> dict[str, Any]:
        """The response to a review, which must fit its request."""
        asked = review(pod, **request)
        status, answered = await self.post(json.dumps(asked))
        assert status == 200
        assert (answered["apiVersion"], answered["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        assert answered["response"]["uid"] == asked["request"]["uid"]
        response: dict[str, Any] = answered["response"]
        return response


@pytest_asyncio.fixture
async def client(injector: Injector) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http:
        client = Client(injector, http)
        await until(lambda: client.review({}), 40, "the injector answers")
        yield client


async def test_bombs_cost_the_injector_nothing(client: Client) -> None:
    running = client.injector
    target = Target(running.process.pid, running.port, "/readyz", ("/mutate", "/none"), running.context, HOST)
    await require_unharmed(target)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_every_shape_of_pod_is_answered_and_what_is_patched_is_valid_and_done(
    client: Client, shape: Shape
) -> None:
    response = await client.review(shape.pod)
    if shape.outcome == "denied":
        assert response["allowed"] is False
        assert response["status"]["code"] == 422
        for words in shape.denied:
            assert words in response["status"]["message"]
        return
    assert response["allowed"] is True
    after = patched(shape.pod, response)
    if shape.outcome == "ignored":
        assert after is shape.pod
        return
    assert len(sidecars(after)) == 1
    assert shape.warned in " ".join(response.get("warnings", ()))
    validate(after, OLDEST["native"], NEWEST)
    again = await client.review(after)
    assert (again["allowed"], "patch" in again) == (True, False)


@pytest.mark.parametrize(
    "request_of",
    [
        {"operation": "UPDATE", "oldObject": pod()},
        {"operation": "DELETE", "object": None, "oldObject": pod()},
        {"operation": "CONNECT", "subResource": "exec"},
        {"subResource": "ephemeralcontainers", "operation": "UPDATE"},
        {"subResource": "binding"},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"kind": {"group": "", "version": "v1", "kind": "PodTemplate"}},
        {"namespace": "kube-system"},
        {"namespace": "understudy-system"},
    ],
    ids=lambda given: "-".join(map(str, given)),
)
async def test_anything_but_a_new_pod_of_others_is_let_through_untouched(
    client: Client, request_of: dict[str, Any]
) -> None:
    response = await client.review(pod(), **request_of)
    assert response == {"uid": response["uid"], "allowed": True}


async def test_a_dry_run_gets_the_same_answer(client: Client) -> None:
    real, dry = await client.review(pod()), await client.review(pod(), dryRun=True)
    assert real["patch"] == dry["patch"]


def _deep(levels: int) -> bytes:
    return json.dumps(review("PLACE")).replace('"PLACE"', '{"a":' * levels + "1" + "}" * levels).encode()


_ODD = (None, True, 3, 1.5, "text", [], {}, [[]], [None], ["x"], {"name": 3}, [{"name": []}])


@pytest.mark.parametrize("part", ["metadata", "spec"])
async def test_pods_of_wrong_types_are_answered_cleanly(client: Client, part: str) -> None:
    given = pod()
    for key in [*given[part], "labels", "annotations", "initContainers", "volumes", "os", "nodeSelector"]:
        for odd in _ODD:
            broken = copy.deepcopy(given)
            broken[part][key] = odd
            response = await client.review(broken)
            assert response["allowed"] or response["status"]["code"] == 422, (part, key, odd, response)
    for odd in _ODD:
        response = await client.review({**given, part: odd})
        assert response["allowed"] or response["status"]["code"] == 422


async def test_containers_of_wrong_types_are_answered_cleanly(client: Client) -> None:
    for key in ("name", "env", "ports", "lifecycle", "readinessProbe", "args", "volumeMounts"):
        for odd in _ODD:
            broken = pod({"app-port": "8080"})
            broken["spec"]["containers"][0][key] = odd
            response = await client.review(broken)
            assert response["allowed"] or response["status"]["code"] == 422, (key, odd, response)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"null", {}, 400),
        (b"\xff\xfe", {}, 400),
        (json.dumps(review(pod())).replace('"dryRun": false', '"dryRun": NaN').encode(), {}, 400),
        (json.dumps(review(pod())).replace('"dryRun": false', '"dryRun": -Infinity').encode(), {}, 400),
        (json.dumps({**review(pod()), "apiVersion": "admission.k8s.io/v1beta1"}).encode(), {}, 400),
        (json.dumps({**review(pod()), "kind": "Pod"}).encode(), {}, 400),
        (json.dumps({**review(pod()), "request": None}).encode(), {}, 400),
        (json.dumps(review(pod(), uid=7)).encode(), {}, 400),
        (json.dumps(review(pod(), uid="")).encode(), {}, 400),
        (_deep(100_000), {}, 400),
        (json.dumps(review(pod())).encode(), {"Content_Type": "text/plain"}, 415),
        (json.dumps(review(pod())).encode(), {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        (b" " * (5 * 1024 * 1024), {}, 413),
        (b"[" * (10 * 1024 * 1024), {}, 413),
    ],
)
async def test_what_is_no_review_gets_a_clean_refusal(
    client: Client, body: bytes, headers: dict[str, str], status: int
) -> None:
    answered = await client.post(body, **headers)
    assert answered[0] == status
    assert answered[1]["kind"] == "Status"
    assert answered[1]["message"]
    assert (await client.review(pod()))["allowed"]


@pytest.mark.parametrize("levels", [50, 300, 900, 985])
async def test_a_deep_pod_is_let_through_or_refused_and_never_breaks_anything(client: Client, levels: int) -> None:
    odd = pod()
    odd["spec"]["containers"][0]["resources"] = "PLACE"
    asked = json.dumps(review(odd)).replace('"PLACE"', '{"a":' * levels + "1" + "}" * levels)
    status, answered = await client.post(asked)
    assert status in (200, 400)
    if status == 200:
        assert isinstance(answered["response"]["allowed"], bool)


async def test_other_methods_and_paths_are_none_of_ours(client: Client) -> None:
    for method, path, status in (("GET", "/mutate", 405), ("POST", "/other", 404), ("PUT", "/mutate", 405)):
        url = f"https://127.0.0.1:{client.injector.port}{path}"
        async with client.http.request(method, url, ssl=client.injector.context, server_hostname=HOST) as answer:
            assert answer.status == status


async def test_who_sends_slowly_or_nonsense_is_dropped_and_others_are_served_meanwhile(client: Client) -> None:
    def connect() -> Any:
        return asyncio.open_connection(
            "127.0.0.1", client.injector.port, ssl=client.injector.context, server_hostname=HOST
        )

    reader, writer = await connect()
    head = f"POST /mutate HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{{"
    writer.write(head.encode())
    await writer.drain()
    assert (await client.review(pod()))["allowed"]
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()

    reader, writer = await connect()
    writer.write(b"\x00\x01 nonsense\r\n\r\n")
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.")
    writer.close()

    reader, writer = await connect()
    writer.write(head.encode())
    await writer.drain()
    writer.transport.abort()

    reader, writer = await asyncio.open_connection("127.0.0.1", client.injector.port)
    writer.write(b"POST /mutate HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(30):
        assert b"200" not in await reader.read()
    writer.close()
    assert (await client.review(pod()))["allowed"]
    assert client.injector.process.poll() is None


async def test_many_large_bodies_at_once_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    size, senders = 4_000_000, 60
    head = f"POST /mutate HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {size + 1}\r\n\r\n"
    with started(tmp_path, partial(bound_to, os.getpid())) as flooded:  # a fork's memory is not its own

        def peak() -> int:
            status = Path(f"/proc/{flooded.process.pid}/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) * 1024

        async def send() -> str:
            """All of a body but its last byte; the status of the answer, "gone" if the connection is before that."""
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", flooded.port, ssl=flooded.context, server_hostname=HOST
            )
            with contextlib.suppress(ConnectionError):
                writer.write(head.encode() + b" " * size)
                await writer.drain()
            answer = b""
            with contextlib.suppress(ConnectionError):  # who is very late with its body finds nobody there
                answer = await reader.readline()
            writer.close()
            return answer.decode().split(" ")[1] if answer else "gone"

        async with aiohttp.ClientSession() as http:
            client = Client(flooded, http)
            await until(lambda: client.review({}), 40, "the injector answers")
            at_rest = peak()

            async with asyncio.timeout(60):
                answers = Counter(await asyncio.gather(*(send() for _ in range(senders))))

            assert answers["503"]
            assert answers.keys() <= {"408", "503", "gone"}
            assert peak() - at_rest < senders * size // 2
            assert "patch" in await client.review(pod())


async def test_an_injector_that_is_told_to_stop_answers_until_nobody_sends_it_reviews(tmp_path: Path) -> None:
    with started(tmp_path, forked) as stopping:
        async with aiohttp.ClientSession() as http:
            client = Client(stopping, http)
            await until(lambda: client.review({}), 40, "the injector answers")

            async def ready() -> int:
                url = f"https://127.0.0.1:{stopping.port}/readyz"
                async with http.get(url, ssl=stopping.context, server_hostname=HOST) as answer:
                    return answer.status

            assert await ready() == 200
            stopping.process.terminate()

            async def unready() -> bool:
                return await ready() == 503

            await until(unready, 40, "it says that it is about to stop")
            assert "patch" in await client.review(pod())
        await until(lambda: stopping.process.poll() is not None, 40, "it ends")
        assert stopping.process.returncode == 0


async def test_outcomes_are_counted_and_faults_are_none_of_ours(client: Client) -> None:
    async with client.http.get(f"http://127.0.0.1:{client.injector.metrics}/metrics") as answer:
        text = await answer.text()
    counts = {
        line.split('"')[1]: float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("understudy_injector_reviews_total")
    }
    assert counts["failed"] == 0
    assert "understudy_injector_review_seconds_bucket" in text
    log = client.injector.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
