"""The console's routes, under ``/console/`` of a control server's HTTP port.

Pages are whole HTML documents that can be read without scripts. Scripts keep them up to date from one stream of events
per browser. ``NAME.json`` beside a page has the data that the command prints with ``-o json``.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.console import acts, reading
from understudy.deploy.console.all_pools import pool_rows
from understudy.deploy.console.drill_runs import CHECKED_MOST, DrillRuns
from understudy.deploy.console.feed import Feeds, PoolFeed
from understudy.deploy.console.joined_stream import joined
from understudy.deploy.console.load_reading import plan_values, proposal, slot_loads
from understudy.deploy.console.render import FOLDER, render
from understudy.deploy.console.security import Access, ConsoleSettings, secure
from understudy.deploy.console.traffic import traffic_view
from understudy.deploy.console.wishes import DRILL, Wish
from understudy.deploy.data.rebalance import placement_file, plan_file
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.inspect.views import failovers_view, table_view
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.http.http_port import OWN_PAGE, OwnPages
from understudy.statesync.parsing.strict_json import whole_number
from understudy.telemetry.slo.page import POLICY as STYLE_POLICY
from understudy.telemetry.slo.page import page as review_page
from understudy.telemetry.timing.duration import parse_duration
from understudy.telemetry.tracing.ids import is_trace_id
from understudy.xds.control.http_access import rights_of
from understudy.xds.control.http_extension import HttpParts
from understudy.xds.control.pool_service import PoolService
from understudy.xds.control.rights import EVERY, Right, may
from understudy.xds.control.served_pools import not_served
from understudy.xds.server.ads_router import NotServed

logger = logging.getLogger(__name__)

PREFIX = "/console"
ROWS_PER_PAGE = 200
WISH_MOST = 1 << 18
"""Bytes of a request: an act may have a plan with it."""
DRILLS_WINDOW = "90d"
REVIEW_POLICY = f"{STYLE_POLICY}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""For the page of ``understudy slo --html``."""
_STATIC = frozenset(path.name for path in (FOLDER / "static").iterdir())
_LONGEST_WINDOW = 366 * 86_400
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _NotFoundError(Exception):
    """There is no such page; the text says what there is."""


def add_console(app: web.Application, parts: HttpParts, settings: ConsoleSettings) -> None:
    """Add the console to the application of a control server's HTTP port."""
    console = _Console(parts, Access(settings, parts.etcds, guarded=parts.guarded), settings)
    app[OWN_PAGE] = OwnPages(
        lambda request: request.path.startswith(f"{PREFIX}/") and console.access.is_own_page(request)
    )
    app.router.add_get(PREFIX, _to_console)
    app.add_subapp(PREFIX, console.app())


async def _to_console(_request: web.Request) -> web.Response:
    raise web.HTTPFound(f"{PREFIX}/")


class _Console:
    """The handlers."""

    def __init__(self, parts: HttpParts, access: Access, settings: ConsoleSettings) -> None:
        self._parts = parts
        self.access = access
        self._drills = DrillRuns(settings.tls)
        self._feeds = Feeds(parts, self._drills.view)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._answer], client_max_size=WISH_MOST)
        pool = "/{pool}"
        app.add_routes(
            [
                web.get("/", self._pools),
                web.get("/_static/{file}", _static),
                web.get("/_events", self._events),
                web.get(pool, self._to_pool),
                web.get(f"{pool}/", self._overview),
                web.get(f"{pool}/slots", self._slots),
                web.get(f"{pool}/slots/table", self._slot_table),
                web.get(f"{pool}/members", self._members),
                web.get(f"{pool}/failovers", self._failovers),
                web.get(f"{pool}/failovers/{{trace}}.json", self._failover_json),
                web.get(f"{pool}/failovers/{{trace}}", self._failover),
                web.get(f"{pool}/explain", self._explain),
                web.post(f"{pool}/explain", self._explain),
                web.get(f"{pool}/objectives", self._objectives),
                web.get(f"{pool}/review", self._review),
                web.get(f"{pool}/envoys", self._envoys),
                web.get(f"{pool}/plans", self._plans),
                web.get(f"{pool}/load.json", self._load_json),
                web.get(f"{pool}/traffic.json", self._traffic_json),
                web.get(f"{pool}/plan.json", self._plan_json),
                web.get(f"{pool}/placement.json", self._placement_json),
                web.get(f"{pool}/audit", self._audit),
                web.get(f"{pool}/frame.json", self._frame_json),
                web.get(f"{pool}/slots.json", self._slots_json),
                web.get(f"{pool}/failovers.json", self._failovers_json),
                web.post(f"{pool}/preview", self._preview),
                web.post(f"{pool}/act", self._act),
            ]
        )
        app.on_response_prepare.append(_secure)
        app.on_shutdown.append(self._on_shutdown)
        app.on_cleanup.append(self._on_cleanup)
        return app

    async def _on_shutdown(self, _app: web.Application) -> None:
        self._feeds.close()

    async def _on_cleanup(self, _app: web.Application) -> None:
        await self._drills.aclose()
        await self._feeds.aclose()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests for other names, and make every fault a page, or JSON for scripts."""
        if not self.access.knows_host(request):
            text = "This host name is not known here. Give it to the control server with --console-host.\n"
            return web.Response(status=HTTPStatus.MISDIRECTED_REQUEST, text=text)
        try:
            return await handler(request)
        except NotServed as error:
            return self._fault(request, 503 if error.later else 404, str(error))
        except _NotFoundError as error:
            return self._fault(request, 404, str(error))
        except NegativeAnswer as error:
            return self._fault(request, 409 if request.method == "POST" else 404, str(error))
        except (DeployError, EtcdError) as error:
            return self._fault(request, 503, str(error))
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                raise
            return self._fault(request, error.status, f"{request.method} {request.path}: {error.reason}")

    def _fault(self, request: web.Request, status: int, detail: str) -> web.Response:
        if request.path.endswith((".json", "/preview", "/act", "/_events")):
            return _json({"detail": detail}, status)
        text = render("fault.html", title=HTTPStatus(status).phrase, detail=detail, control=self._parts.name)
        return web.Response(status=status, text=text, content_type="text/html")

    # What a request is about

    def _service(self, request: web.Request) -> PoolService:
        """The pool of a request."""
        return self._visible_service(request, request.match_info["pool"])

    def _visible_service(self, request: web.Request, pool: str) -> PoolService:
        """A pool. One that the caller may not see is like one that is not there."""
        if not self._sees_all(request) and not any(one.pool == pool for one in self._visible(request)):
            raise NotServed(not_served(pool, [one.pool for one in self._visible(request)]))
        return self._parts.pools.find(pool)

    def _visible(self, request: web.Request) -> list[PoolService]:
        return [one for one in self._parts.pools.services if may(rights_of(request), one.tenant, Right.READER)]

    def _sees_all(self, request: web.Request) -> bool:
        return may(rights_of(request), EVERY, Right.READER)

    def _feed(self, request: web.Request) -> PoolFeed:
        return self._feeds.of(self._service(request))

    async def _page(
        self,
        request: web.Request,
        template: str,
        path: str,
        topics: str = "overview",
        **values: Any,  # noqa: ANN401 - what the template needs
    ) -> web.Response:
        """A page of a pool. ``topics`` are the kinds of objects that its script keeps up to date."""
        service = self._service(request)
        feed = self._feeds.of(service)
        frame = await feed.frame()
        text = render(
            template,
            path=path,
            topics=topics,
            base=f"{PREFIX}/{feed.pool}/",
            frame=frame,
            event_id=feed.event_id,
            overview=frame.overview,
            control=self._parts.name,
            silent=feed.silent_seconds,
            at=time.time(),
            several=self._parts.pools.several,
            read_only=self.access.read_only(request, service.tenant),
            who=rights_of(request).who,
            **values,
        )
        return web.Response(text=text, content_type="text/html")

    # Pages

    async def _pools(self, request: web.Request) -> web.Response:
        names = None if self._sees_all(request) else {one.pool for one in self._visible(request)}
        rows = [row for row in self._parts.pools.rows() if names is None or row["pool"] in names]
        if len(rows) == 1 and not self._parts.pools.several:
            raise web.HTTPFound(f"{PREFIX}/{rows[0]['pool']}/")
        now = time.time()
        states = {one.pool: one.controller.state_builder.state for one in self._parts.pools.services}
        text = render("pools.html", rows=pool_rows(rows, states, now), control=self._parts.name, at=now)
        return web.Response(text=text, content_type="text/html")

    async def _to_pool(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(f"{PREFIX}/{self._service(request).pool}/")

    async def _overview(self, request: web.Request) -> web.Response:
        return await self._page(request, "overview.html", "", "overview", traffic=await self._traffic(request))

    async def _traffic(self, request: web.Request) -> dict[str, Any]:
        feed = self._feed(request)
        failovers = (await feed.frame()).objects["failovers"].values()
        return traffic_view(feed.traffic, failovers, time.time())

    async def _slots(self, request: web.Request) -> web.Response:
        return await self._page(request, "slots.html", "slots", "overview slots")

    async def _slot_table(self, request: web.Request) -> web.Response:
        first, loads = _start(request), slot_loads(self._service(request))
        return await self._page(
            request, "slot_table.html", "slots", "overview slots", first=first, most=ROWS_PER_PAGE, loads=loads
        )

    async def _members(self, request: web.Request) -> web.Response:
        return await self._page(
            request,
            "members.html",
            "members",
            "overview members sites",
            first=_start(request),
            most=ROWS_PER_PAGE,
            search=request.query.get("q", "")[:100],
        )

    async def _failovers(self, request: web.Request) -> web.Response:
        return await self._page(request, "failovers.html", "failovers", "overview failovers")

    async def _failover(self, request: web.Request) -> web.Response:
        found = await self._failover_view(request)
        return await self._page(request, "failover.html", "failovers", "overview", **found)

    async def _failover_view(self, request: web.Request) -> dict[str, Any]:
        state, _ = self._feed(request).records()
        trace = request.match_info["trace"].lower()
        if not is_trace_id(trace):
            raise _NotFoundError("a trace id is 32 hex digits, not all 0")
        return await reading.failover(state, trace)

    async def _explain(self, request: web.Request) -> web.Response:
        key, found = "", None
        history: list[dict[str, Any]] = []
        if request.method == "POST":
            key = str((await request.post()).get("key", "")).strip()
            state, _ = self._feed(request).records()
            found = await reading.explain(self._service(request).etcd.client, state, key) if key else None
            history = reading.history_of(state, found["slot"]) if found else []
        return await self._page(request, "explain.html", "explain", key=key, found=found, history=history)

    async def _objectives(self, request: web.Request) -> web.Response:
        window = request.query.get("window", "30d")
        state, _ = self._feed(request).records()
        review, fault = None, ""
        try:
            review = await reading.review_of(state, _seconds(window), of_all=self._sees_all(request))
        except (DeployError, NegativeAnswer) as error:
            fault = str(error)
        return await self._page(request, "objectives.html", "objectives", review=review, fault=fault, window=window)

    async def _review(self, request: web.Request) -> web.Response:
        state, _ = self._feed(request).records()
        window = _seconds(request.query.get("window", "30d"))
        review = await reading.review_of(state, window, of_all=self._sees_all(request))
        problems = (await self._feed(request).frame()).overview["problems"]
        text = await asyncio.to_thread(
            review_page, review, degraded=[f"{one['text']}: {one['command']}" for one in problems]
        )
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": REVIEW_POLICY})

    async def _envoys(self, request: web.Request) -> web.Response:
        return await self._page(request, "envoys.html", "envoys", "overview envoys")

    async def _plans(self, request: web.Request) -> web.Response:
        service, window = self._service(request), request.query.get("window", DRILLS_WINDOW)
        state, _ = self._feed(request).records()
        of_all = self._sees_all(request)
        plan = await plan_values(service, state, _asked(request), ordered="by" in request.query)
        drills = await reading.drill_values(state, window, _seconds(window), of_all=of_all)
        return await self._page(request, "plans.html", "plans", **plan, **drills)

    async def _audit(self, request: web.Request) -> web.Response:
        state, _ = self._feed(request).records()
        rows = await reading.audit(self._service(request).etcd.client, state)
        return await self._page(request, "audit.html", "audit", rows=rows)

    # Data

    async def _frame_json(self, request: web.Request) -> web.Response:
        return _json((await self._feed(request).frame()).json())

    async def _slots_json(self, request: web.Request) -> web.Response:
        await self._feed(request).frame()
        return _json(table_view(self._feed(request).records()[0]))

    async def _failovers_json(self, request: web.Request) -> web.Response:
        await self._feed(request).frame()
        return _json(failovers_view(self._feed(request).records()[0]))

    async def _load_json(self, request: web.Request) -> web.Response:
        return _json({"slots": slot_loads(self._service(request))})

    async def _traffic_json(self, request: web.Request) -> web.Response:
        return _json(await self._traffic(request))

    async def _plan_json(self, request: web.Request) -> web.Response:
        return _file(plan_file(await proposal(self._service(request), _asked(request))))

    async def _placement_json(self, request: web.Request) -> web.Response:
        await self._feed(request).frame()
        return _file(placement_file(self._feed(request).records()[0]))

    async def _failover_json(self, request: web.Request) -> web.Response:
        return _json(await self._failover_view(request))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._feeds.closing:
            return _json({"detail": "this control server is stopping"}, 503)
        feeds, gone = self._followed(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        await response.prepare(request)
        events = joined(feeds, {request.headers.get("Last-Event-ID", ""), *request.query.getall("have", ())}, gone)
        try:
            async for text in events:
                await response.write(text)
        except (ConnectionError, TimeoutError) as error:
            logger.debug("a browser has gone: %s; it connects again by itself", error)
        finally:
            await events.aclose()
        return response

    def _followed(self, request: web.Request) -> tuple[list[PoolFeed], dict[str, str]]:
        """The feeds of the pools that a stream is asked for, and why the others are not there. Raises ``NotServed``."""
        feeds, gone = [], {}
        for pool in dict.fromkeys(request.query.getall("pool", ())):
            try:
                feeds.append(self._feeds.of(self._visible_service(request, pool)))
            except NotServed as error:
                gone[pool] = str(error)
        if not feeds:
            raise NotServed(next(iter(gone.values()), "name a pool: ?pool=NAME"))
        return feeds, gone

    # Acts

    async def _wish(self, request: web.Request) -> Wish:
        try:
            wish = msgspec.json.decode(await request.read(), type=Wish)
        except msgspec.MsgspecError as error:
            raise NegativeAnswer(f"the request cannot be read: {error}") from None
        if fault := wish.fault():
            raise NegativeAnswer(fault)
        return wish

    async def _preview(self, request: web.Request) -> web.Response:
        """What an act would do, or ``refused``: why it would be refused."""
        service = self._service(request)
        state, _ = self._feed(request).records()
        cluster = service.controller.state_builder.current()
        try:
            wish = await self._wish(request)
            shown = await asyncio.to_thread(acts.preview, state, cluster, wish, time.time())
            if wish.act == DRILL and len(state.members) <= CHECKED_MOST:
                shown["refused"] = await self._drills.refusals(service.etcd, service.pool, wish)
            return _json(shown)
        except NegativeAnswer as error:
            return _json({"refused": str(error)})

    async def _act(self, request: web.Request) -> web.Response:
        service = self._service(request)
        if refusal := self.access.refusal(request, service.tenant):
            return _json({"detail": refusal}, 403)
        wish = await self._wish(request)
        if rights_of(request).proved:
            wish = msgspec.structs.replace(wish, who=rights_of(request).who)
        origin = request.remote or "unknown"
        if wish.act == DRILL:
            return _json(await self._drill(service, wish, origin))
        return _json(await acts.perform(self._parts.name, service.etcd, service.pool, wish, origin, time.time()))

    async def _drill(self, service: PoolService, wish: Wish, origin: str) -> dict[str, Any]:
        """Start a drill, on records that are read now."""
        pool, etcd = service.pool, service.etcd
        state, _ = await read_pool(etcd.client, pool)
        acts.drill_preview(state, None, wish, time.time())
        await self._drills.start(etcd, pool, wish, acts.actor_of(self._parts.name, etcd, wish, origin))
        return {"done": f"the drill of {wish.target} has begun", "command": wish.command(pool)}


async def _static(request: web.Request) -> web.StreamResponse:
    name = request.match_info["file"]
    if name not in _STATIC:
        raise _NotFoundError(f"there is no file {name!r}")
    return web.FileResponse(FOLDER / "static" / name, headers={"Cache-Control": "no-cache"})


async def _secure(_request: web.Request, response: web.StreamResponse) -> None:
    secure(response)


def _json(value: Any, status: int = 200) -> web.Response:  # noqa: ANN401 - JSON data
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _file(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


def _asked(request: web.Request) -> dict[str, str]:
    """By what to balance, and how far members may be above their shares; '' for what the spec says."""
    return {name: request.query.get(name, "").strip()[:20] for name in ("by", "over")}


def _start(request: web.Request) -> int:
    """The first row of a page of a long table."""
    return whole_number(request.query.get("from", "0"), 10**6) or 0


def _seconds(window: str) -> int:
    """A window such as ``30d``, in seconds."""
    seconds = parse_duration(window, ("m", "h", "d", "w")) or 0.0
    if not 1 <= seconds <= _LONGEST_WINDOW:
        raise _NotFoundError(f"window: {window!r} is not a duration of at most a year; examples: 90m, 24h, 30d")
    return int(seconds)
