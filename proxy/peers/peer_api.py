"""The peer API: what the other members' sidecars ask of this one (forwarded calls, probes, handovers)."""

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from functools import partial

from aiohttp import web

from understudy.proxy.ownership.context import MemberContext
from understudy.proxy.ownership.handover import Handover, HandoverFailed
from understudy.proxy.ownership.read_deadline import ReadDeadline
from understudy.proxy.ownership.takeovers import NotTaken, Takeovers
from understudy.proxy.peers.peer_client import (
    ACTIVATE_PATH,
    ETCD_CHECK_TIMEOUT,
    ETCD_PATH,
    PREPARE_PATH,
    PROBE_PATH,
    SESSIONS_PATH,
    TAKE_PATH,
)
from understudy.proxy.sessions.admission import certificate_wanted
from understudy.proxy.sessions.problems import problem
from understudy.proxy.sessions.service import SessionService
from understudy.proxy.sessions.session_api import (
    BODY_MOST,
    add_session_routes,
    as_json,
    call_of,
    problems,
    respond,
    revision_in,
    slots_in,
)
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.parsing.strict_json import whole_number
from understudy.statesync.pool.pool_clock import wall_ms
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.testing.crash_points import CrashPoint, crash_point
from understudy.statesync.tls.identity import Trust

TOGETHER_MOST = 100
"""Slots in one handover: one transaction must hold them."""


def peer_app(
    context: MemberContext,
    service: SessionService,
    handover: Handover,
    takeovers: Takeovers,
    reads: ReadDeadline,
    *,
    trust: Trust | None = None,
) -> web.Application:
    """The peers' side of the sidecar; with ``trust`` they must show certificates of the pool that it names."""
    checks = []
    if trust is not None:
        known = partial(trust.kinds_of, members=context.addresses, controls=context.state.controls)
        checks.append(certificate_wanted(known, respond))
    app = web.Application(client_max_size=BODY_MOST, middlewares=[problems, *checks])

    async def probe(_: web.Request) -> web.Response:
        here = {"member": context.me, "boot": context.boot, "serving": not reads.cut_off, "clock": wall_ms()}
        return web.json_response(here)

    async def one(request: web.Request) -> web.Response:
        call = await call_of(request, key=request.match_info["key"])
        return respond(await service.handle(dataclasses.replace(call, hop=True)))

    async def etcd(_: web.Request) -> web.Response:
        """Whether etcd answers a look that is sent now, and has not paused of late."""
        answered = await reads.confirmed(time.monotonic(), ETCD_CHECK_TIMEOUT)
        steady = context.contact.steady(time.monotonic())
        return web.json_response({"member": context.me, "answered": answered, "steady": steady})

    app.router.add_get(PROBE_PATH, probe)
    app.router.add_get(ETCD_PATH, etcd)
    _add_take_route(app, takeovers)
    add_session_routes(app, SESSIONS_PATH + "{key}", one)
    app.router.add_post(SESSIONS_PATH + "{key}", one)  # a refusal
    _add_handover_routes(app, context, handover)
    return app


def _add_handover_routes(app: web.Application, context: MemberContext, handover: Handover) -> None:
    """The target's side of a handover."""

    async def prepare(request: web.Request) -> web.Response:
        try:
            slots = slots_in(as_json(await request.read()), TOGETHER_MOST)
            await asyncio.gather(*(context.replica.full_sync(slot) for slot in slots))
        except (ValueError, KeyError, TypeError) as error:
            return respond(problem(400, "bad-request", f"slots to prepare: {error}"))
        except EtcdError as error:
            return respond(problem(503, "not-ready", f"a slot cannot be read: {error}", retry_after=1))
        crash_point(CrashPoint.TARGET_PREPARED)
        return web.json_response({"slots": slots})

    async def activate(request: web.Request) -> web.Response:
        try:
            asked = as_json(await request.read())
            slots, revision = slots_in(asked, TOGETHER_MOST), revision_in(asked["revision"])
        except (ValueError, KeyError, TypeError) as error:
            return respond(problem(400, "bad-request", f"slots to take and the revision of their records: {error}"))
        try:
            taken = await handover.take(slots, revision)
        except HandoverFailed as error:
            return respond(problem(409, "not-owner", f"slots {list(error.slots)}: {error.why}"))
        except EtcdError as error:
            return respond(problem(503, "outcome-unknown", str(error), retry_after=1))
        owners = {slot: dataclasses.asdict(at.record) for slot, at in taken.items()}
        return web.json_response({"owners": owners, "revision": taken[slots[0]].revision})

    app.router.add_post(PREPARE_PATH, prepare)
    app.router.add_post(ACTIVATE_PATH, activate)


def _add_take_route(app: web.Application, takeovers: Takeovers) -> None:
    """Where an owner that alone is cut off from etcd gives its slots away."""

    async def take(request: web.Request) -> web.Response:
        try:
            asked = as_json(await request.read())
            member, boot = str(asked["member"]), str(asked["boot"])
            fences = _fences_in(asked)
        except (ValueError, KeyError, TypeError) as error:
            return respond(problem(400, "bad-request", f"who gives which slots, by their records' revisions: {error}"))
        try:
            taken = await takeovers.given(member, boot, fences)
        except NotTaken as error:
            return respond(problem(409, "not-owner", str(error)))
        except EtcdError as error:
            return respond(problem(503, "outcome-unknown", str(error), retry_after=1))
        return web.json_response(taken.as_json())

    app.router.add_post(TAKE_PATH, take)


def _fences_in(asked: Mapping[str, object]) -> dict[int, int]:
    """The revisions of the records of slots that are given away; raises ``ValueError`` or ``KeyError``."""
    given = asked["slots"]
    if not isinstance(given, dict):
        raise ValueError("slots: expected {SLOT: REVISION}")  # noqa: TRY004 - bad input, not a programming error
    fences = {whole_number(str(slot), MAX_SLOTS - 1): revision_in(fence) for slot, fence in given.items()}
    if None in fences:
        raise ValueError(f"a slot is a whole number below {MAX_SLOTS}")
    return {slot: fence for slot, fence in fences.items() if slot is not None}
