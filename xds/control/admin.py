"""The control server's HTTP interface for people and tools: what it knows, as JSON. It changes nothing.

It has a port of its own, apart from xDS. ``/healthz`` says that the process runs, ``/readyz`` that it can serve Envoys.
In a process with several pools a request about one of them names it: ``?pool=NAME``. Traces are those of all pools.
With a rights file a caller sees the pools of its tenants only, and no word of others
(:mod:`understudy.xds.control.rights`).
Errors are ``application/problem+json`` (RFC 9457). The functions below that build the answers say what the values mean.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from understudy.statesync.parsing.strict_json import whole_number
from understudy.telemetry.metrics.phase_metrics import expose
from understudy.telemetry.store.schema import StoreError
from understudy.telemetry.store.store import SpanStore
from understudy.telemetry.tracing.ids import is_trace_id
from understudy.xds.control.admin_views import failovers_view, members_view, recovering_view, slots_view, table_view
from understudy.xds.control.front_view import fronts_view
from understudy.xds.control.http_access import RightsFile, rights_of, rights_wanted
from understudy.xds.control.last_read import heartbeats_view, records_text
from understudy.xds.control.load_api import LoadApi, load_status
from understudy.xds.control.pool_service import PoolService
from understudy.xds.control.replies import json_reply, problem_reply
from understudy.xds.control.rights import EVERY, Right, Rights, may
from understudy.xds.control.served_pools import Pools, not_served
from understudy.xds.control.visible_traces import of_pools, pool_named
from understudy.xds.server.ads_router import NotServed

MOST_LISTED = 1000
TRACES_PER_PAGE = 100
RECORDS_PER_PAGE = 2_000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """The handlers; :meth:`app` makes the application that serves them."""

    def __init__(
        self,
        *,
        name: str,
        pools: Pools,
        store: SpanStore,
        registry: CollectorRegistry,
        rights: RightsFile | None = None,
    ) -> None:
        """``registry`` has the metrics of the process. Without ``rights`` every caller may read."""
        self._rights = rights
        self._name = name
        self._pools = pools
        self._store = store
        self._registry = registry

    def app(self) -> web.Application:
        """An aiohttp application with all routes."""
        app = web.Application(middlewares=[_problems, rights_wanted(self._rights, problem_reply)])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/v1/pools", self._listed),
                web.get("/v1/targets", self._targets),
                web.get("/v1/status", self._status),
                web.get("/v1/xds", self._xds),
                web.get("/v1/fronts", self._front_envoys),
                web.get("/v1/traffic", self._traffic),
                web.get("/v1/table", self._table),
                *LoadApi(self._service).routes(),
                web.get("/v1/records", self._records),
                web.get("/v1/failovers", self._failovers),
                web.get("/v1/traces", self._traces),
                web.get("/v1/traces/{trace}", self._trace),
                web.get("/v1/spans", self._spans),
                web.get("/v1/requests", self._requests),
            ]
        )
        return app

    async def _healthz(self, _request: web.Request) -> web.Response:
        return json_reply({"status": "ok", "control": self._name})

    async def _readyz(self, request: web.Request) -> web.Response:
        """Ready or not; the reason may name a pool, so it is for those who see all pools, or that pool."""
        named = "pool" in request.query
        reason = self._service(request).unready() if named else self._pools.unready()
        if not reason:
            return json_reply({"status": "ready"})
        shown = named or may(rights_of(request), EVERY, Right.READER)
        return problem_reply(503, "not-ready", "not ready", reason if shown else "a pool is starting")

    def _service(self, request: web.Request, needed: Right = Right.READER) -> PoolService:
        """The pool that a request is about: ``?pool=NAME``, or the only one of this process.

        The caller has the right ``needed`` for it. A pool that the caller may not see is like one that is not there.
        """
        pool, rights = request.query.get("pool", ""), rights_of(request)
        try:
            service = self._pools.find(pool)
        except NotServed as error:
            raise self._not_served(pool, rights, error) from None
        if not self._sees(rights, service.pool):
            raise self._not_served(pool, rights, NotServed(""))
        if not may(rights, service.tenant, needed):
            wanted = needed.name.lower()
            raise _RefusedError(
                403, "forbidden", "right missing", f"{rights.who} needs the right {wanted} for pool {service.pool}"
            )
        return service

    def _not_served(self, pool: str, rights: Rights, error: NotServed) -> "_RefusedError":
        """The refusal of a pool, which names no pool that the caller may not see."""
        text, later = str(error), error.later
        if not self._sees(rights, pool):
            text, later = not_served(pool, self._visible(rights)), False
        if not pool:
            return _RefusedError(400, "no-pool", "no pool named", f"add ?pool=NAME: {text}")
        return _RefusedError(503 if later else 404, "not-served", "pool not served", text)

    def _sees(self, rights: Rights, pool: str) -> bool:
        return may(rights, EVERY, Right.READER) or pool in self._visible(rights)

    def _visible(self, rights: Rights) -> frozenset[str]:
        """The pools that a caller may see. One that is not running here has no known tenant."""
        if may(rights, EVERY, Right.READER):
            return frozenset(str(row["pool"]) for row in self._pools.rows())
        return frozenset(one.pool for one in self._pools.services if may(rights, one.tenant, Right.READER))

    def _limited_to(self, request: web.Request) -> frozenset[str] | None:
        """The pools to which a caller is limited; None for one who sees all, and what is of no pool."""
        rights = rights_of(request)
        return None if may(rights, EVERY, Right.READER) else self._visible(rights)

    def _rows(self, request: web.Request) -> list[dict[str, object]]:
        limited = self._limited_to(request)
        return [row for row in self._pools.rows() if limited is None or row["pool"] in limited]

    async def _listed(self, request: web.Request) -> web.Response:
        """The pools of this process: whether each is ready for Envoys and led from here, and what is wrong with it."""
        return json_reply({"control": self._name, "pools": self._rows(request)})

    async def _targets(self, request: web.Request) -> web.Response:
        """What Prometheus scrapes here, for its HTTP service discovery: the process, and each pool of several."""
        own = {"targets": [request.host], "labels": {"instance": self._name}}
        return json_reply(
            [
                *([own] if self._limited_to(request) is None else []),
                *(
                    {
                        "targets": [request.host],
                        "labels": {"instance": f"{self._name}/{row['pool']}", "__param_pool": row["pool"]},
                    }
                    for row in (self._rows(request) if self._pools.several else ())
                ),
            ]
        )

    async def _status(self, request: web.Request) -> web.Response:
        service = self._service(request)
        controller, leadership, now = service.controller, service.leadership, service.now_ns()
        state_builder, informer = controller.state_builder, controller.informer
        cluster = state_builder.current()
        return json_reply(
            {
                "control": self._name,
                "pool": service.pool,
                "ready": not service.unready(),
                "reason": service.unready(),
                "leader": {
                    "name": state_builder.state.leader.record if state_builder.state.leader else None,
                    "is_me": leadership.is_leader,
                    "term": leadership.term,
                },
                "etcd": {
                    "cluster": service.etcd.name,
                    "revision": state_builder.revision,
                    "synced": informer.synced.is_set(),
                    "silent_seconds": round(informer.silent_for, 1),
                    "resets": informer.resets,
                    "trouble": informer.trouble or leadership.trouble or controller.leader.trouble,
                },
                "spec": {
                    "slots": cluster.spec.slots if cluster else None,
                    "mode": cluster.spec.mode if cluster else None,
                    "fault": state_builder.spec_fault,
                },
                "faults": state_builder.state.faults,
                "slots": slots_view(cluster) if cluster else None,
                "generation": cluster.table.generation if cluster and cluster.table else None,
                "brakes": [
                    {"why": hold.why, "seconds": round(max(hold.until - now, 0) / 1e9, 1)}
                    for hold in (controller.leader.holds(cluster, now) if leadership.is_leader and cluster else [])
                ],
                "recovering": recovering_view(service, cluster) if cluster and leadership.is_leader else [],
                "xds": {
                    "publications": controller.publisher.publications,
                    "fault": controller.publisher.fault,
                    "front_fault": service.front_fault,
                    "answer_ms": cluster.answer_ms if cluster else None,
                },
                "members": members_view(cluster, controller.detector, now) if cluster else [],
                "missing": [
                    {"member": member, "cause": cause, "seconds": round(seconds)}
                    for member, (cause, seconds) in controller.missing.items()
                ],
                "heartbeats": heartbeats_view(controller.detector, now),
                **load_status(service),
                "controls": {name: dataclasses.asdict(at.record) for name, at in state_builder.state.controls.items()},
            }
        )

    async def _xds(self, request: web.Request) -> web.Response:
        return json_reply(self._service(request).envoys())

    async def _front_envoys(self, request: web.Request) -> web.Response:
        service = self._service(request)
        return json_reply(fronts_view(service.controller.state_builder.current(), service.fronts, time.time()))

    async def _traffic(self, request: web.Request) -> web.Response:
        return json_reply(self._service(request).fronts.series.view())

    async def _metrics(self, request: web.Request) -> web.Response:
        """The metrics of this process; with ``?pool=NAME`` those of one of its pools.

        Those of the process are for callers who may see all pools. In a process for one pool they are that pool's.
        """
        of_one = "pool" in request.query or not self._pools.several
        service = self._service(request) if of_one else None
        if service is None and self._limited_to(request) is not None:
            raise _RefusedError(403, "forbidden", "right missing", "the metrics of the process are about all pools")
        registry = service.registry if service else self._registry
        body, content_type = expose(registry, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _table(self, request: web.Request) -> web.Response:
        cluster = self._service(request).controller.state_builder.current()
        if cluster is None or cluster.table is None:
            return problem_reply(404, "no-table", "no slot table", "the pool has no slot table yet")
        return json_reply(table_view(cluster))

    async def _records(self, request: web.Request) -> web.Response:
        """The pool's records as this server last read them, and for how long etcd has been silent since."""
        service = self._service(request)
        state_builder, informer = service.controller.state_builder, service.controller.informer
        if not informer.synced.is_set():
            return problem_reply(503, "not-ready", "not ready", service.unready())
        head = {
            "control": self._name,
            "pool": service.pool,
            "revision": state_builder.revision,
            "silent_seconds": round(informer.silent_for, 1),
            "faults": dict(state_builder.state.faults),
        }
        text = await asyncio.to_thread(records_text, head, state_builder.state.stored())
        return web.Response(text=text, content_type="application/json")

    async def _failovers(self, request: web.Request) -> web.Response:
        return json_reply({"failovers": failovers_view(self._service(request).controller.state_builder.state)})

    async def _traces(self, request: web.Request) -> web.Response:
        limit = whole_number(request.query.get("limit", "50"), MOST_LISTED)
        if not limit:
            return problem_reply(400, "bad-limit", "bad limit", f"limit: 1 to {MOST_LISTED}")
        traces, limited = await self._store.traces(limit), self._limited_to(request)
        if limited is not None:
            traces = [trace for trace in traces if pool_named(trace.attributes) in limited]
        return json_reply({"traces": [dataclasses.asdict(trace) for trace in traces]})

    async def _spans(self, request: web.Request) -> web.Response:
        """Spans of the first :data:`TRACES_PER_PAGE` traces that began in ``[since, until)`` (ns since 1970).

        ``next`` is the ``since`` of the next page, which may repeat a trace; None when there is none.
        """
        bounds = _window(request)
        if bounds is None:
            return problem_reply(400, "bad-window", "bad window", "since and until: ns since 1970")
        since, until = bounds
        spans = await self._store.window(since, until, TRACES_PER_PAGE)
        begun: dict[str, int] = {}
        for span in spans:
            begun[span.trace_id] = min(span.start_ns, begun.get(span.trace_id, span.start_ns))
        last = max(begun.values(), default=0)
        following = (last if last > since else last + 1) if len(begun) == TRACES_PER_PAGE else None
        return await _json_of_many({"next": following}, spans=of_pools(spans, self._limited_to(request)))

    async def _requests(self, request: web.Request) -> web.Response:
        """What front Envoys reported for ``[since, until]`` (ns since 1970): failed and repeated requests, and counts.

        The first :data:`RECORDS_PER_PAGE` of each. ``next`` is the ``since`` of the next page, which repeats the last
        moment of this one; None when there is none.
        """
        bounds = _window(request)
        if bounds is None:
            return problem_reply(400, "bad-window", "bad window", "since and until: ns since 1970")
        since, until = bounds
        reports = await self._store.logs(since, until, RECORDS_PER_PAGE)
        counts = await self._store.counts(since, until, RECORDS_PER_PAGE)
        full = [log.time_ns for log in reports[-1:] if len(reports) == RECORDS_PER_PAGE]
        full += [one.end_ns for one in counts[-1:] if len(counts) == RECORDS_PER_PAGE]
        following = min(full, default=None)
        following = following if following is None or following > since else following + 1
        limited = self._limited_to(request)
        if limited is not None:  # counts are kept by front Envoy, without the pool
            reports, counts = [one for one in reports if pool_named(one.attributes) in limited], []
        return await _json_of_many({"next": following}, reports=reports, counts=counts)

    async def _trace(self, request: web.Request) -> web.Response:
        trace = request.match_info["trace"].lower()
        if not is_trace_id(trace):
            return problem_reply(400, "bad-trace", "not a trace id", "a trace id is 32 hex digits, not all 0")
        spans = of_pools(await self._store.trace(trace), self._limited_to(request))
        if not spans:
            return problem_reply(404, "no-trace", "no such trace", f"nothing is stored of trace {trace}")
        return json_reply({"trace": trace, "spans": [dataclasses.asdict(span) for span in spans]})


def _window(request: web.Request) -> tuple[int, int] | None:
    """``since`` and ``until`` of a query, in ns since 1970; None if they are none."""
    bounds = [request.query.get(name, "") for name in ("since", "until")]
    if not all(text.isascii() and text.isdigit() and len(text) <= 19 for text in bounds):
        return None
    since, until = (min(int(text), (1 << 63) - 1) for text in bounds)
    return since, until


class _RefusedError(Exception):
    """A request that cannot be answered; ``problem`` is its answer."""

    def __init__(self, status: int, kind: str, title: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = (status, kind, title, detail)


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Make every error a problem document, without a stack trace."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return problem_reply(error.status, "http", error.reason, f"{request.method} {request.path}")
    except _RefusedError as error:
        return problem_reply(*error.problem)
    except StoreError as error:
        return problem_reply(503, "trace-store", "the trace store cannot be read", str(error))


async def _json_of_many(head: dict[str, Any], **records: Sequence[Any]) -> web.Response:
    """A page of many records (dataclasses with slots), encoded in a thread so that Envoys and members need not wait.

    It is encoded record by record: ``json.dumps`` of the whole would not let other threads run until it is done.
    """

    def text() -> str:
        parts = [f'"{name}":{json.dumps(value)}' for name, value in head.items()]
        parts += [
            f'"{name}":[{",".join(json.dumps(_fields(one)) for one in found)}]' for name, found in records.items()
        ]
        return f"{{{','.join(parts)}}}"

    return web.Response(text=await asyncio.to_thread(text), content_type="application/json")


def _fields(record: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass with slots
    return {name: getattr(record, name) for name in record.__slots__}
