"""The peer API: what other sidecars and control servers ask of this one.

Forwarded session calls are added by :func:`understudy.proxy.sessions.session_api.add_forwarded_calls`.
"""

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Middleware

from understudy.proxy.http.problems import problem
from understudy.proxy.http.requests import MAX_BODY, as_json, problems, respond, revision_in, slots_in
from understudy.proxy.member.pool_view import PoolView
from understudy.proxy.peers.peer_protocol import (
    ACTIVATE_PATH,
    COMMANDS_PATH,
    ETCD_CHECK_TIMEOUT,
    ETCD_PATH,
    PREPARE_PATH,
    REPLICATION_PATH,
    SESSIONS_PATH,
    TAKE_PATH,
    NotTaken,
    Taken,
)
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.heartbeat.probe import GENERATION, PROBE_PATH
from understudy.statesync.parsing.strict_json import whole_number
from understudy.statesync.pool.pool_clock import wall_ms
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.slots import MAX_SLOTS
from understudy.statesync.pool.state import At
from understudy.statesync.tls.identity import MEMBER, Trust, names_in

logger = logging.getLogger(__name__)

MAX_SLOTS_TOGETHER = 100
"""Slots in one handover: one transaction must hold them."""
_MEMBERS_ONLY = (SESSIONS_PATH, COMMANDS_PATH, PREPARE_PATH, ACTIVATE_PATH, TAKE_PATH, REPLICATION_PATH)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the peer API answers with.

    ``serving``: whether this member reaches etcd well enough to serve. ``reaches_etcd``: whether etcd answers within so
    many seconds, and whether it has done so steadily. ``take`` ends a handover to this member; ``take_given`` claims
    slots that their owner gives away. The last two raise ``NotTaken`` and ``EtcdError``.
    """

    serving: Callable[[], bool]
    reaches_etcd: Callable[[float], Awaitable[tuple[bool, bool]]]
    take: Callable[[Sequence[int], int], Awaitable[Mapping[int, At[Owner]]]]
    take_given: Callable[[str, str, Mapping[int, int]], Awaitable[Taken]]


def peer_app(pool: PoolView, answers: Answers, *, trust: Trust | None = None) -> web.Application:
    """The peers' side of the sidecar; with ``trust`` they must show certificates of the pool that it names."""
    checks = []
    if trust is not None:
        kinds = partial(trust.kinds_of, members=pool.addresses, controls=pool.state.controls)
        checks.append(certificate_wanted(kinds))
    app = web.Application(client_max_size=MAX_BODY, middlewares=[problems, *checks])
    me = pool.identity

    async def probe(_: web.Request) -> web.Response:
        here = {"member": me.me, "boot": me.boot, "serving": answers.serving(), "clock": wall_ms()}
        return web.json_response({**here, GENERATION: pool.state.generation})

    async def etcd(_: web.Request) -> web.Response:
        answered, steady = await answers.reaches_etcd(ETCD_CHECK_TIMEOUT)
        return web.json_response({"member": me.me, "answered": answered, "steady": steady})

    app.router.add_get(PROBE_PATH, probe)
    app.router.add_get(ETCD_PATH, etcd)
    _add_take_route(app, answers)
    _add_handover_routes(app, answers)
    return app


def certificate_wanted(kinds: Callable[[tuple[str, ...]], frozenset[str]]) -> Middleware:
    """Middleware for mTLS: 403 unless the certificate's names, of these ``kinds``, may ask this.

    Sessions, handovers and replication are for members; the rest is for members, control servers and operators.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        names = names_in(transport.get_extra_info("peercert") if transport else None)
        who = kinds(names)
        resource = request.match_info.route.resource
        path = resource.canonical if resource else request.path
        if MEMBER in who or (who and not path.startswith(_MEMBERS_ONLY)):
            return await handler(request)
        whose = ", ".join(names) or "nobody"
        logger.warning("%s from %s refused: the certificate is for %s", path, request.remote, whose)
        return respond(problem(403, "not-a-peer", f"the certificate is for {whose}, who may not ask this"))

    return check


def _add_handover_routes(app: web.Application, answers: Answers) -> None:
    """The target's side of a handover."""

    async def prepare(request: web.Request) -> web.Response:
        """For owners of release 0.1.0, which ask before they hand a slot over; it is read from etcd afterwards."""
        try:
            slots = slots_in(as_json(await request.read()), MAX_SLOTS_TOGETHER)
        except (ValueError, KeyError, TypeError) as error:
            return respond(problem(400, "bad-request", f"slots to prepare: {error}"))
        return web.json_response({"slots": slots})

    async def activate(request: web.Request) -> web.Response:
        try:
            asked = as_json(await request.read())
            slots, revision = slots_in(asked, MAX_SLOTS_TOGETHER), revision_in(asked["revision"])
        except (ValueError, KeyError, TypeError) as error:
            return respond(problem(400, "bad-request", f"slots to take and the revision of their records: {error}"))
        try:
            taken = await answers.take(slots, revision)
        except NotTaken as error:
            return respond(problem(409, "not-owner", str(error)))
        except EtcdError as error:
            return respond(problem(503, "outcome-unknown", str(error), retry_after=1))
        owners = {slot: dataclasses.asdict(at.record) for slot, at in taken.items()}
        return web.json_response({"owners": owners, "revision": taken[slots[0]].revision})

    app.router.add_post(PREPARE_PATH, prepare)
    app.router.add_post(ACTIVATE_PATH, activate)


def _add_take_route(app: web.Application, answers: Answers) -> None:
    """Where an owner that alone is cut off from etcd gives its slots away."""

    async def take(request: web.Request) -> web.Response:
        try:
            asked = as_json(await request.read())
            member, boot = str(asked["member"]), str(asked["boot"])
            fences = _fences_in(asked)
        except (ValueError, KeyError, TypeError) as error:
            return respond(problem(400, "bad-request", f"who gives which slots, by their records' revisions: {error}"))
        try:
            taken = await answers.take_given(member, boot, fences)
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
