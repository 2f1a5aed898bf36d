"""A real Envoy with the resources of a pool, and members behind it that are processes of their own."""

import asyncio
import contextlib
import itertools
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.harness.front import Answer, Front, PoolCache, running_front
from tests.harness.programs import Program
from tests.harness.waiting import free_port, until
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import HealthChecks, Retries, Timeouts
from understudy.xds.envoy.resources import CLUSTER, build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView

MEMBERS = ("cart-1", "cart-2", "cart-3")
EVERY_ORDER = tuple(itertools.permutations(MEMBERS))
SLOTS = 256
ECHO = "tests.xds.envoy.echo_member"
Clusters = Mapping[str, Any]
UNHURRIED = PoolSpec(
    pool="cart",
    timeouts=Timeouts(connect_ms=10_000, request_seconds=60),
    retries=Retries(hedge_ms=20_000),
    health_checks=HealthChecks(timeout_ms=20_000),
)
"""Envoy takes nobody for dead because this machine is slow, and asks nobody else as well."""


def evenly(orders: Sequence[tuple[str, ...]] = EVERY_ORDER) -> tuple[tuple[str, ...], ...]:
    """These orders for all slots, by turns."""
    return tuple(orders[slot % len(orders)] for slot in range(SLOTS))


class ServedPool:
    """The members, and the Envoy that clients reach them by. ``view`` says who serves which slot."""

    def __init__(self, directory: Path, view: RoutingView, program: str) -> None:
        self.view = view
        self.cache = PoolCache(view.spec.pool)
        self.notes = directory / "notes"
        self.notes.touch()
        self.members = {
            name: Program(
                name,
                [sys.executable, "-m", program, name, str(endpoint.port), str(self.notes)],
                directory / f"{name}.log",
            )
            for name, endpoint in view.members.items()
        }
        self.port = free_port()
        self.front: Front

    async def request(self, method: str = "GET", path: str = "/", *, body: bytes = b"", **headers: str) -> Answer:
        """One request; see :meth:`tests.harness.front.Front.request`."""
        return await self.front.request(method, path, body=body, **headers)

    def requests_under_way(self, count: int, method: str, mark: str, **headers: str) -> list[asyncio.Task[Answer]]:
        """Requests that their member answers only after :meth:`answer_now`."""
        asked = [self.request(method, "/wait", x_request=mark, **headers) for _ in range(count)]
        return [asyncio.create_task(request) for request in asked]

    def answer_now(self) -> None:
        """Have the members answer what they hold back."""
        self.notes.with_name(self.notes.name + ".go").touch()

    def who_saw(self, mark: str) -> list[str]:
        """The members that a request with this mark reached, in order."""
        return [
            who
            for who, _, what in (line.partition(" ") for line in self.notes.read_text().splitlines())
            if what == mark
        ]

    def copies_of(self, mark: str) -> list[tuple[str, str, str]]:
        """Of every copy of a request with this mark, by Envoy's tries: which it was, who got it, its stamp."""
        lines = self.notes.with_name(self.notes.name + ".copies").read_text().splitlines()
        seen = [line.split(" ") for line in lines]
        return sorted((attempt, who, stamp) for what, attempt, who, stamp in seen if what == mark)

    def order_of(self, key: str) -> tuple[str, ...]:
        """The members in the order in which Envoy tries them for a session key."""
        return self.view.orders[slot_of(key, SLOTS)]

    def key_of(self, member: str) -> str:
        """A session key whose slot ``member`` is active for."""
        return next(key for key in iter(lambda: secrets.token_hex(8), "") if self.order_of(key)[:1] == (member,))

    def kill(self, member: str) -> None:
        """``kill -9``."""
        self.members[member].kill()

    def freeze(self, member: str) -> None:
        """SIGSTOP."""
        self.members[member].signal(signal.SIGSTOP)

    def thaw(self, member: str) -> None:
        """SIGCONT."""
        self.members[member].signal(signal.SIGCONT)

    async def healthy_hosts(self) -> int:
        """How many members Envoy takes for healthy."""
        return await self.front.envoy.stat("cluster.cart/any.membership_healthy")

    async def say(self, member: str, *, healthy: bool) -> None:
        """Tell Envoy of a member's health."""
        members = {**self.view.members, member: replace(self.view.members[member], healthy=healthy)}
        self.view = replace(self.view, members=members)
        await self.cache.publish(self.view)

    async def _answers(self, member: str) -> bool:
        return (await self.request(x_session_id=self.key_of(member))).text == member


def view_of(spec: PoolSpec, orders: Sequence[tuple[str, ...]], *, checked: bool) -> RoutingView:
    """Three members at free ports; if ``checked``, they answer health checks where they answer everything else."""
    ports = {member: free_port() for member in MEMBERS}
    members = {
        name: Endpoint("127.0.0.1", port, check=("127.0.0.1", port) if checked else None)
        for name, port in ports.items()
    }
    return RoutingView(spec, members, orders)


@contextlib.asynccontextmanager
async def served_pool(
    directory: Path,
    *,
    orders: Sequence[tuple[str, ...]] | None = None,
    adapt: Callable[[Clusters], Clusters] | None = None,
    spec: PoolSpec | None = None,
    program: str = ECHO,
) -> AsyncIterator[ServedPool]:
    """An Envoy and three members, all ready; if they run another ``program`` than the usual, the test has to wait.

    ``adapt`` is given the clusters and returns those that are to be different from the beginning.
    """
    spec = spec or UNHURRIED
    # Members that do not speak HTTP/1 answer no health checks.
    pool = ServedPool(directory, view_of(spec, orders or evenly(), checked=program == ECHO), program)
    await pool.cache.publish(pool.view)
    if adapt:
        await pool.cache.update(CLUSTER, adapt(build(pool.view)[CLUSTER]))
    pool.cache.ready()
    async with contextlib.AsyncExitStack() as stack:
        for member in pool.members.values():
            stack.callback(member.kill)
            member.start()
        pool.front = await stack.enter_async_context(running_front(directory, pool.cache, port=pool.port))
        await pool.front.listens()
        for name in MEMBERS if program == ECHO else ():
            await until(lambda name=name: pool._answers(name), timeout=60, what=f"{name} behind Envoy")
        yield pool
