"""The webhook's HTTP server: limits requests, passes them to ``review``, and always answers.

A valid review gets a review as its answer, everything else a 4xx. If the injector itself fails, the answer is a denial:
the pod's controller tries again, and no pod silently starts without its sidecar. The log has the reason.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from understudy.deploy.kubernetes.base.injection_settings import InjectionSettings
from understudy.deploy.kubernetes.base.lenient_json import Body
from understudy.deploy.kubernetes.webhook.configuration import PATH
from understudy.deploy.kubernetes.webhook.connection_limit import Door
from understudy.deploy.kubernetes.webhook.review import FAILED, INVALID, NoReview, answer, denial, read_review
from understudy.telemetry.metrics.phase_metrics import expose

logger = logging.getLogger(__name__)

BODY_MOST = 4 * 1024 * 1024
"""Maximum bytes of a review. etcd limits objects to 1.5 MiB, and a review contains the pod once or twice."""
BODY_SECONDS = 3.0
"""Seconds within which a body must arrive. API servers give up after 5 s."""
HELD_MOST = 16 * 1024 * 1024
"""Maximum bytes of all bodies in memory at once. A review has about 20 KB and is done within a millisecond. The limit
keeps clients that send large bodies on many connections from exhausting the injector's memory.
"""
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class WebhookMetrics:
    """The injector's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reviews = Counter(
            "understudy_injector_reviews",
            "Reviews by outcome: injected, ignored, denied, failed (our fault), or rejected (no review at all).",
            labelnames=("outcome",),
            registry=self.registry,
        )
        for outcome in ("injected", "ignored", "denied", "failed", "rejected"):
            self.reviews.labels(outcome)
        self.seconds = Histogram(
            "understudy_injector_review_seconds",
            "How long reviews took, from their last byte to the answer's first.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.certificate_end = Gauge(
            "understudy_injector_certificate_end_seconds",
            "Until when the serving certificate is good, in seconds since 1970.",
            registry=self.registry,
        )


@dataclass(slots=True)
class Readiness:
    """Whether the injector can answer API servers; ``reason`` says why not."""

    reason: str = "starting"
    stopping: bool = False

    def stop(self) -> None:
        """The injector will stop soon."""
        self.reason, self.stopping = "stopping", True


@dataclass(slots=True)
class Webhook:
    """The handlers of one injector."""

    settings: InjectionSettings
    metrics: WebhookMetrics = field(default_factory=WebhookMetrics)
    readiness: Readiness = field(default_factory=Readiness)
    door: Door = field(default_factory=Door)
    _held: int = field(default=0, init=False)

    def app(self) -> web.Application:
        """The application with reviews and probes."""
        app = web.Application(client_max_size=BODY_MOST, middlewares=[self.door.note, _clean])
        app.router.add_post(PATH, self._mutate)
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        return app

    def metrics_app(self) -> web.Application:
        """``/metrics``, in plain HTTP."""
        app = web.Application()
        app.router.add_get("/metrics", self._expose)
        return app

    async def _mutate(self, request: web.Request) -> web.Response:
        held = bytearray()
        try:
            await self._take(request, held)
            asked = read_review(held)
        except (NoReview, web.HTTPException) as error:
            self.metrics.reviews.labels("rejected").inc()
            if isinstance(error, web.HTTPException):
                raise
            return _refusal(400, str(error))
        finally:
            self._held -= len(held)
        began = time.perf_counter()
        answered, outcome = self._answer(asked)
        self.metrics.seconds.observe(time.perf_counter() - began)
        self.metrics.reviews.labels(outcome).inc()
        return web.json_response(answered, dumps=_dumps)

    async def _take(self, request: web.Request, held: bytearray) -> None:
        """Read the body into ``held``. It ends in a 4xx unless the body is JSON by its type and arrives in time.

        It also ends in a 4xx if the body is too large, and in a 503 if all bodies together are.
        """
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="reviews are application/json")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.content.iter_any():
                    if len(held) + len(part) > BODY_MOST:
                        raise web.HTTPRequestEntityTooLarge(BODY_MOST, len(held) + len(part))
                    if self._held + len(part) > HELD_MOST:
                        raise web.HTTPServiceUnavailable(text="too many large bodies at once: try again")
                    held += part
                    self._held += len(part)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"the body did not come within {BODY_SECONDS:g} s") from None
        except (ConnectionError, web.RequestPayloadError):
            raise web.HTTPBadRequest(text="the body is incomplete") from None

    def _answer(self, asked: Body) -> tuple[Body, str]:
        try:
            answered, outcome = answer(asked, self.settings)
        except RecursionError:
            return denial(asked, "the pod is nested too deeply", INVALID), "denied"
        except Exception:
            logger.exception("a review failed")
            return denial(asked, "the injector failed; its log says why", FAILED), "failed"
        if outcome == "denied":
            logger.info("denied: %s", answered["response"]["status"]["message"])
        return answered, outcome

    async def _alive(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        reason = self.readiness.reason
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)

    async def _expose(self, request: web.Request) -> web.Response:
        content, content_type = expose(self.metrics.registry, request.headers.get("Accept", ""))
        return web.Response(body=content, headers={"Content-Type": content_type})


def _dumps(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def _refusal(status: int, message: str) -> web.Response:
    """A 4xx as a Kubernetes Status object."""
    body = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": status, "message": message}
    response = web.json_response(body, status=status)
    response.force_close()
    return response


@web.middleware
async def _clean(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Middleware: every 4xx has the same form, and the connection is closed after it."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _refusal(error.status, error.text or error.reason)
