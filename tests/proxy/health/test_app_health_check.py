"""A member's checks and its health port: real sidecars, asked over HTTP and with the command line."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.harness.envoy import running_envoy
from tests.harness.etcd import EtcdServer
from tests.harness.forkserver import forked
from tests.harness.places import ROOT
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until
from understudy.statesync.pool.records import MemberState

A_FIRST = (("a", "b"),)
ADMIN = {"Understudy-Admin": "true"}


@dataclass
class Service:
    """Something that the application needs, with a health page."""

    url: str = ""
    status: int = 200

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(status=self.status)


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    service, app = Service(), web.Application()
    app.router.add_get("/deep", service.answer)
    async with TestServer(app) as server:
        service.url = str(server.make_url("/deep"))
        yield service


@pytest_asyncio.fixture
async def pool(etcd: EtcdServer, pool_name: str, tmp_path: Path, service: Service) -> AsyncIterator[SidecarPool]:
    often = "every_seconds: 0.1, timeout_seconds: 20"
    room = f"{{name: room, command: [test, '!', -e, {tmp_path}/full], {often}}}"
    # An application that is only slow, as on a busy machine, is not silent for so long.
    patient = "liveness: {missed_beats: 100, unanswered_ms: 10000, application_ms: 5000}"
    spec = f"slots: 16\n{patient}\nchecks: [{room}, {{name: deep, http: '{service.url}', {often}}}]"
    async with sidecar_pool(etcd, pool_name, spec) as pool:
        pool.flags, pool.logs = (lambda name: () if name == "c" else ("--allow-command-checks",)), tmp_path
        yield pool


async def checks(pool: SidecarPool, member: str, *arguments: str) -> tuple[int, str]:
    """``understudy checks ...`` at a member: exit code and output."""
    command = [sys.executable, "-m", "understudy.deploy.cli", "checks", *arguments]
    process = await asyncio.create_subprocess_exec(
        *forked([*command, *(() if "--session-api" in arguments else ("--session-api", pool.members[member].api))]),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def health(pool: SidecarPool, member: str) -> tuple[int, str]:
    """What the member's health port says to an Envoy."""
    record = await pool.record(member)
    assert record is not None
    async with pool.http.get(f"http://{record.health}/health") as answer:
        return answer.status, (await answer.json())["reason"]


async def health_is(pool: SidecarPool, member: str, status: int, reason: str | None = None) -> None:
    """Wait until the member's health port answers so; the event loop of a busy member may stand still for a moment."""

    async def so() -> bool:
        answer = await health(pool, member)
        return answer[0] == status and reason in (None, answer[1])

    await until(so, what=f"the health of {member} is {status} {reason!r}")


async def is_in(pool: SidecarPool, member: str, state: MemberState, reason: str) -> None:
    async def so() -> bool:
        record = await pool.record(member)
        return record is not None and record.state is state and reason in record.reason

    await until(so, what=f"{member} is {state}: {reason!r}")


async def test_a_member_whose_own_envoy_is_gone_gives_its_slots_away(pool: SidecarPool, tmp_path: Path) -> None:
    async with running_envoy({}, tmp_path / "envoy") as envoy:
        admin = envoy.admin.removeprefix("http://")
        pool.flags = lambda name: ("--allow-command-checks", *(("--envoy-admin", admin) if name == "a" else ()))
        await pool.start("a", "b")
        await pool.settle(*A_FIRST)
        await is_in(pool, "a", MemberState.UP, "")

    await is_in(pool, "a", MemberState.DOWN, "check envoy: ")
    await health_is(pool, "a", 503)
    await pool.settle(("b",))
    async with pool.http.get(f"http://{pool.members['a'].api}/v1/status") as answer:
        assert (await answer.json())["state"] == "DOWN", "also without slots: it failed, and does not start"


async def test_a_reported_problem_takes_a_member_down_and_the_last_one_serves_on(
    pool: SidecarPool, service: Service
) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    await is_in(pool, "b", MemberState.UP, "")
    assert (await checks(pool, "a", "register", "db", "--deadline", "60s"))[0] == 0
    assert (await checks(pool, "a", "report", "db", "ok"))[0] == 0
    await health_is(pool, "a", 200, "")

    assert (await checks(pool, "a", "report", "nobody", "ok"))[0] == 1
    assert (await checks(pool, "a", "register", "deep", "--deadline", "9s"))[0] == 2, "the spec has it"
    assert (await checks(pool, "a", "list", "--session-api", service.url))[0] == 2, "that is no sidecar"

    await checks(pool, "a", "report", "db", "problem", "--reason", "no connection")

    await is_in(pool, "a", MemberState.DOWN, "check db: no connection")
    await health_is(pool, "a", 503, "check db: no connection")
    well = dict.fromkeys(("application", "etcd", "replica", "event-loop", "room", "deep"), "ok")

    async def listed() -> bool:
        code, shown = await checks(pool, "a", "list", "-o", "json")
        assert code == 1
        return {check["name"]: check["state"] for check in json.loads(shown)["checks"]} == {**well, "db": "problem"}

    await until(listed, what="all other checks are well")

    pool.kill("b")
    await pool.client.delete(pool.keys.member("b"))
    await is_in(pool, "a", MemberState.ATTENTION, "nobody else can serve: check db")
    await health_is(pool, "a", 200)
    await checks(pool, "a", "remove", "db")
    await is_in(pool, "a", MemberState.UP, "")


async def test_a_missed_deadline_takes_a_member_down_and_a_check_that_fails_everywhere_takes_nobody(
    pool: SidecarPool, service: Service, tmp_path: Path
) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    api = f"http://{pool.members['a'].api}/v1/checks"
    async with pool.http.put(f"{api}/feed", json={"deadline_seconds": 0.5}, headers=ADMIN) as answer:
        assert answer.status == 201
    await is_in(pool, "a", MemberState.DOWN, "check feed: no report for")
    async with pool.http.post(f"{api}/feed", json={"state": "fine"}, headers=ADMIN) as answer:
        assert answer.status == 400
    async with pool.http.post(f"{api}/nothing", json={"state": "ok"}, headers=ADMIN) as answer:
        assert answer.status == 404
    async with pool.http.put(f"{api}/room", json={"deadline_seconds": 1}, headers=ADMIN) as answer:
        assert answer.status == 409
    async with pool.http.delete(f"{api}/feed", headers=ADMIN) as answer:
        assert answer.status == 204
    await is_in(pool, "a", MemberState.UP, "")

    (tmp_path / "full").touch()
    for member in ("a", "b"):
        await is_in(pool, member, MemberState.ATTENTION, "nobody else can serve: check room: test ended with 1")
        await health_is(pool, member, 200)
    (tmp_path / "full").unlink()
    await is_in(pool, "a", MemberState.UP, "")
    service.status = 500
    await is_in(pool, "a", MemberState.ATTENTION, f"check deep: {service.url} answers 500")
    service.status = 204
    await is_in(pool, "a", MemberState.UP, "")


async def test_commands_of_a_spec_run_only_where_the_sidecar_may(pool: SidecarPool, tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    await pool.start("c")

    async def begun() -> set[str]:
        _, listed = await checks(pool, "c", "list", "-o", "json")
        return {check["name"] for check in json.loads(listed)["checks"]} & {"deep", "room"}

    assert await until(begun, what="the checks of the spec have begun") == {"deep"}


async def test_a_frozen_application_is_told_from_a_frozen_sidecar(pool: SidecarPool) -> None:
    await pool.start("a", "b")
    await pool.settle(*A_FIRST)
    application = pool.members["a"].application
    application.signal(signal.SIGSTOP)
    await is_in(pool, "a", MemberState.DOWN, "the application is silent")
    await health_is(pool, "a", 503)
    application.signal(signal.SIGCONT)
    await is_in(pool, "a", MemberState.UP, "")
    await health_is(pool, "a", 200, "")
