"""A real Envoy with the resources of ``resources`` and real members behind it, without a control server.

The resources are rendered into a static bootstrap; only endpoints come from files that Envoy watches, so that a test
can change a member's health. What ADS adds is tested elsewhere.
"""

import asyncio
import contextlib
import itertools
import json
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration

from tests.harness.forkserver import forked
from tests.harness.waiting import free_port, until
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.listener import listener
from understudy.xds.envoy.resources import CLUSTER, ENDPOINTS, ROUTES, build, routes_name
from understudy.xds.envoy.routing_view import Endpoint, RoutingView

MEMBERS = ("cart-1", "cart-2", "cart-3")
EVERY_ORDER = tuple(itertools.permutations(MEMBERS))
SLOTS = 256
ECHO = "tests.xds.envoy.echo_member"


def evenly(orders: Sequence[tuple[str, ...]] = EVERY_ORDER) -> tuple[tuple[str, ...], ...]:
    return tuple(orders[slot % len(orders)] for slot in range(SLOTS))


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: Any


class Front:
    """The Envoy and its members. ``orders`` is who serves which slot."""

    def __init__(
        self, directory: Path, orders: Sequence[tuple[str, ...]], spec: PoolSpec | None = None, program: str = ECHO
    ) -> None:
        self.directory = directory
        self.orders = orders
        self.notes = directory / "notes"
        self.notes.touch()
        ports = {member: free_port() for member in MEMBERS}
        self.program = program
        # The test's members answer health checks where they answer everything else, if they speak HTTP/1.
        checked = program == ECHO
        members = {
            name: Endpoint("127.0.0.1", port, check=("127.0.0.1", port) if checked else None)
            for name, port in ports.items()
        }
        self.view = RoutingView(spec or PoolSpec(pool="cart"), members, orders)
        self.port, self.admin = free_port(), free_port()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._http: aiohttp.ClientSession | None = None

    async def request(self, method: str = "GET", path: str = "/", *, body: bytes = b"", **headers: str) -> Answer:
        """One request; ``x_session_id="k"`` is the header ``x-session-id: k``."""
        assert self._http is not None
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._http.request(
            method, f"http://127.0.0.1:{self.port}{path}", headers=named, data=body or None
        ) as answer:
            return Answer(answer.status, await answer.text(), answer.headers)

    def requests_under_way(self, count: int, method: str, mark: str, **headers: str) -> list[asyncio.Task[Answer]]:
        """Requests that their member answers only after :meth:`answer_now`."""
        asked = [self.request(method, "/wait", x_request=mark, **headers) for _ in range(count)]
        return [asyncio.create_task(request) for request in asked]

    def answer_now(self) -> None:
        self.notes.with_name(self.notes.name + ".go").touch()

    def who_saw(self, mark: str) -> list[str]:
        """The members that a request with this mark reached, in order."""
        return [
            who
            for who, _, what in (line.partition(" ") for line in self.notes.read_text().splitlines())
            if what == mark
        ]

    def copies_of(self, mark: str) -> list[tuple[str, str]]:
        """Of every copy of a request with this mark which try of Envoy's it was, and its ``Understudy-Request``."""
        lines = self.notes.with_name(self.notes.name + ".copies").read_text().splitlines()
        seen = [line.split(" ") for line in lines]
        return [(attempt, stamp) for what, attempt, stamp in seen if what == mark]

    def order_of(self, key: str) -> tuple[str, ...]:
        return self.orders[slot_of(key, SLOTS)]

    def key_of(self, member: str) -> str:
        """A session key whose slot ``member`` is active for."""
        return next(key for key in iter(lambda: secrets.token_hex(8), "") if self.order_of(key)[:1] == (member,))

    async def kill(self, member: str) -> None:
        self._processes[member].kill()
        await self._processes[member].wait()

    def freeze(self, member: str) -> None:
        self._processes[member].send_signal(signal.SIGSTOP)

    def thaw(self, member: str) -> None:
        self._processes[member].send_signal(signal.SIGCONT)

    async def healthy_hosts(self) -> int:
        """How many members Envoy takes for healthy."""
        return await self.stat("cluster.cart/any.membership_healthy")

    def say(self, member: str, *, healthy: bool) -> None:
        """Tell Envoy of a member's health."""
        members = {**self.view.members, member: replace(self.view.members[member], healthy=healthy)}
        self.view = RoutingView(self.view.spec, members, self.orders)
        for name, assignment in build(self.view)[ENDPOINTS].items():
            self._write_endpoints(name, assignment)

    async def stat(self, name: str) -> int:
        assert self._http is not None
        async with self._http.get(f"http://127.0.0.1:{self.admin}/stats?format=json") as answer:
            found = (await answer.json())["stats"]
        return next((stat["value"] for stat in found if stat.get("name") == name), 0)

    def bootstrap(self, adapt: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
        """The resources as a configuration file. ``adapt`` may change a cluster."""
        resources = build(self.view)
        clusters = [_plain(Cluster, cluster) for cluster in resources[CLUSTER].values()]
        for cluster in clusters:
            if "edsClusterConfig" in cluster:
                path = self._write_endpoints(cluster["name"], resources[ENDPOINTS][cluster["name"]])
                source = {"pathConfigSource": {"path": str(path)}, "resourceApiVersion": "V3"}
                cluster["edsClusterConfig"] = {"edsConfig": source}
            adapt(cluster)
        served = _plain(Listener, listener("cart", "127.0.0.1", self.port))
        manager = served["filterChains"][0]["filters"][0]["typedConfig"]
        assert manager.pop("rds")["routeConfigName"] == routes_name("cart")
        manager["routeConfig"] = _plain(RouteConfiguration, resources[ROUTES][routes_name("cart")])
        admin = {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": self.admin}}}
        path = self.directory / "envoy.json"
        node = {"id": "front", "cluster": "cart"}
        path.write_text(
            json.dumps({"node": node, "admin": admin, "staticResources": {"clusters": clusters, "listeners": [served]}})
        )
        return path

    def _write_endpoints(self, name: str, assignment: bytes) -> Path:
        path = self.directory / f"{name.replace('/', '_')}.json"
        resource = {"@type": ENDPOINTS, **_plain(ClusterLoadAssignment, assignment)}
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps({"resources": [resource]}))
        scratch.replace(path)
        return path

    async def start(self, envoy: Path, adapt: Callable[[dict[str, Any]], None]) -> None:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        for member, endpoint in self.view.members.items():
            await self._run(member, sys.executable, "-m", self.program, member, str(endpoint.port), str(self.notes))
        flags = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
        await self._run("envoy", str(envoy), "--config-path", str(self.bootstrap(adapt)), *flags)
        for member in MEMBERS if self.program == ECHO else ():
            await until(lambda member=member: self._answers(member), timeout=30, what=f"{member} behind Envoy")

    async def _answers(self, member: str) -> bool:
        return (await self.request(x_session_id=self.key_of(member))).text == member

    async def _run(self, name: str, *command: str) -> None:
        self._processes[name] = await asyncio.create_subprocess_exec(*forked(command), cwd=Path(__file__).parents[3])

    async def stop(self) -> None:
        if self._http is not None:
            await self._http.close()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def running_front(
    directory: Path,
    envoy: Path,
    *,
    orders: Sequence[tuple[str, ...]] | None = None,
    adapt: Callable[[dict[str, Any]], None] = lambda _: None,
    spec: PoolSpec | None = None,
    program: str = ECHO,
) -> AsyncIterator[Front]:
    """An Envoy and three members, all ready; if they run another ``program`` than the usual, the test has to wait."""
    front = Front(directory, orders or evenly(), spec, program)
    try:
        await front.start(envoy, adapt)
        yield front
    finally:
        await front.stop()


def _plain(kind: Any, encoded: bytes) -> Any:
    # betterproto2 writes this one JSON name in another way than protobuf does.
    return json.loads(kind.parse(encoded).to_json().replace("enforcingConsecutive5Xx", "enforcingConsecutive5xx"))
