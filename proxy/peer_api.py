"""The peer API: what the other members' sidecars ask of this one (forwarded calls, probes, handovers)."""

import dataclasses
import json

from aiohttp import web

from proxy.admission import certificate_wanted
from proxy.context import MemberContext
from proxy.handover import Handover, HandoverFailed
from proxy.owner_calls import UNTIL_EPOCH
from proxy.peers import PROBE_PATH, SESSIONS_PATH
from proxy.problems import problem
from proxy.read_deadline import ReadDeadline
from proxy.service import SessionService
from proxy.session_api import BODY_MOST, add_session_routes, as_json, call_of, problems, respond
from statesync.crash_points import CrashPoint, crash_point
from statesync.etcd import EtcdError
from statesync.identity import kinds_of


def peer_app(
    context: MemberContext,
    service: SessionService,
    handover: Handover,
    reads: ReadDeadline,
    *,
    certificates: bool = False,
) -> web.Application:
    """The peers' side of the sidecar; with ``certificates`` they must be those of the pool."""

    def kinds(names: tuple[str, ...]) -> frozenset[str]:
        return kinds_of(names, members=context.addresses, controls=context.state.controls)

    checks = [certificate_wanted(kinds, respond)] if certificates else []
    app = web.Application(client_max_size=BODY_MOST, middlewares=[problems, *checks])

    async def probe(_: web.Request) -> web.Response:
        return web.json_response({"member": context.me, "boot": context.boot, "serving": not reads.cut_off})

    async def one(request: web.Request) -> web.Response:
        call = await call_of(request, key=request.match_info["key"])
        try:
            until = int(request.headers[UNTIL_EPOCH]) if UNTIL_EPOCH in request.headers else None
        except ValueError:
            return respond(problem(400, "bad-request", "Understudy-Until-Epoch takes an epoch"))
        return respond(await service.handle(dataclasses.replace(call, hop=True, until=until)))

    app.router.add_get(PROBE_PATH, probe)
    add_session_routes(app, SESSIONS_PATH + "{key}", one)
    _add_handover_routes(app, context, handover)
    return app


def _add_handover_routes(app: web.Application, context: MemberContext, handover: Handover) -> None:
    """The target's side of a handover."""

    async def prepare(request: web.Request) -> web.Response:
        slot = int(request.match_info["slot"])
        try:
            await context.replica.full_sync(slot)
        except EtcdError as error:
            return respond(problem(503, "not-ready", f"slot {slot} cannot be read: {error}", retry_after=1))
        crash_point(CrashPoint.TARGET_PREPARED)
        return web.json_response({"slot": slot})

    async def activate(request: web.Request) -> web.Response:
        slot = int(request.match_info["slot"])
        try:
            revision = int(str(as_json(await request.read())["revision"]))
            at = await handover.take(slot, revision)
        except (ValueError, KeyError) as error:
            return respond(problem(400, "bad-request", f"the handover's revision is missing: {error}"))
        except HandoverFailed as error:
            return respond(problem(409, "not-owner", error.why))
        except EtcdError as error:
            return respond(problem(503, "outcome-unknown", str(error), retry_after=1))
        owner = json.loads(json.dumps(dataclasses.asdict(at.record)))
        return web.json_response({"owner": owner, "revision": at.revision})

    app.router.add_post(r"/peer/v1/slots/{slot:\d{1,5}}/prepare", prepare)
    app.router.add_post(r"/peer/v1/slots/{slot:\d{1,5}}/activate", activate)
