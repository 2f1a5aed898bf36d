"""Names of spans, attributes and services: the words that traces are written in.

Our own attributes stand under ``understudy.``; whatever OpenTelemetry's semantic conventions already name
keeps that name (``service.*``, ``error.type``). ``docs/telemetry.md`` explains each of them, and a test
keeps page and module equal. A name that was released is never given another meaning.
"""

from typing import Final

SCOPE: Final = "understudy"
"""The instrumentation scope of all spans that this project records itself."""

# Kinds of change of active, as `understudy.telemetry.tracing.ids.trace_seed` takes them.
KIND_TAKEOVER: Final = "takeover"
KIND_HANDOVER: Final = "handover"

# Root spans.
FAILOVER: Final = "failover"
HANDOVER: Final = "handover"

# Phases of a failover.
DETECT: Final = "detect"
DECIDE: Final = "decide"
CLAIM: Final = "claim"
CATCH_UP: Final = "catch_up"
PUSH: Final = "push"
ACK: Final = "ack"
FIRST_OK: Final = "first_ok"

# Phases that only a handover has.
FENCE: Final = "fence"
FLUSH: Final = "flush"
CONFIRM: Final = "confirm"
MOVE: Final = "move"
HELD_UP: Final = "held_up"

# What the clients of a drill saw of it.
DRILL_SEEN: Final = "drill"

# What is told of a failover after its end.
RE_PROTECT: Final = "re_protect"
REJOIN: Final = "rejoin"
RETURNED: Final = "returned"
FENCED: Final = "fenced"
AUDIT: Final = "audit"

# The loss of a whole site: the root span of a trace of its own, and a child for the takeover from each member.
SITE_LOSS: Final = "site_loss"
MEMBER_LOSS: Final = "member_loss"

ROOTS: Final = (FAILOVER, HANDOVER)
SITE_SPANS: Final = (SITE_LOSS, MEMBER_LOSS)
AFTERMATH: Final = (RE_PROTECT, REJOIN, RETURNED, FENCED, AUDIT)
PHASES: Final = (
    *(DETECT, DECIDE, MOVE, FENCE, FLUSH, CONFIRM, HELD_UP, CLAIM, CATCH_UP, PUSH, ACK, FIRST_OK, DRILL_SEEN),
    *AFTERMATH,
)

# Attributes of spans. In what units and on which spans: docs/telemetry.md.
POOL: Final = "understudy.pool"
MEMBER: Final = "understudy.member"
KIND: Final = "understudy.kind"
CAUSE: Final = "understudy.cause"
PLANNED: Final = "understudy.planned"
FROM: Final = "understudy.from"
TO: Final = "understudy.to"
SLOT: Final = "understudy.slot"
SLOTS: Final = "understudy.slots"
EPOCH: Final = "understudy.epoch"
ETCD_REVISION: Final = "understudy.etcd.revision"
TABLE_GENERATION: Final = "understudy.table.generation"
SESSION_COUNT: Final = "understudy.session.count"
CALLS: Final = "understudy.calls"
WITNESS: Final = "understudy.witness"
NODE_COUNT: Final = "understudy.node.count"
NODE_FIRST_MS: Final = "understudy.node.first_ms"
NODE_LAST_MS: Final = "understudy.node.last_ms"
UNMEASURED: Final = "understudy.unmeasured"
CRITICAL: Final = "understudy.critical"
ERROR_MS: Final = "understudy.error_ms"
LAST_REQUEST: Final = "understudy.request.last"
FIRST_REQUEST: Final = "understudy.request.first"
HELD_REQUEST: Final = "understudy.request.held"
LINK: Final = "understudy.link"
TAKEOVER: Final = "understudy.takeover"
TAKEOVERS: Final = "understudy.takeovers"
BOOT: Final = "understudy.boot"
SITE: Final = "understudy.site"
DRILL: Final = "understudy.drill"
DRILLS_THAT_STOP_SERVICE: Final = frozenset({"link-witness", "all-sites"})
"""The kinds of drills in which no member could serve while the fault lasts, so that failed requests are not judged."""
DRILL_REQUESTS: Final = "understudy.drill.requests"
DRILL_FAILED: Final = "understudy.drill.failed"
DRILL_GAP_MS: Final = "understudy.drill.gap_ms"
DRILL_MISSED: Final = "understudy.drill.missed"
DRILL_COMMAND: Final = "understudy.drill.command"
CLUSTER: Final = "understudy.cluster"
ATTEMPTS: Final = "understudy.attempts"
FLAGS: Final = "understudy.flags"
DETAILS: Final = "understudy.details"
DURATION_MS: Final = "understudy.duration_ms"
HOST: Final = "understudy.host"
DRILL_LOST: Final = "understudy.drill.lost_writes"
DRILL_LOST_ASYNC: Final = "understudy.drill.lost_async_writes"
DRILL_LOST_REPLICAS: Final = "understudy.drill.lost_replica_writes"
WRITES_FENCED: Final = "understudy.writes.fenced"
WRITES_LOST: Final = "understudy.writes.lost"
WRITES_BREACHED: Final = "understudy.writes.breached"
DRILL_NEEDLESS: Final = "understudy.drill.needless_moves"
RETURNED_ALIVE: Final = "understudy.returned"
COULD_NOT_SERVE: Final = "understudy.could_not_serve"
STOP_OR_START: Final = "understudy.stop_or_start"
COPY_SESSIONS: Final = "understudy.copy.sessions"
COPY_BYTES: Final = "understudy.copy.bytes"
COPY_LONGEST_MS: Final = "understudy.copy.longest_ms"
LOSSES: Final = "understudy.losses"
LOSS_SECONDS: Final = "understudy.loss_seconds"

ATTRIBUTES: Final = (
    POOL,
    MEMBER,
    KIND,
    CAUSE,
    PLANNED,
    FROM,
    TO,
    SLOT,
    SLOTS,
    EPOCH,
    ETCD_REVISION,
    TABLE_GENERATION,
    SESSION_COUNT,
    CALLS,
    WITNESS,
    NODE_COUNT,
    NODE_FIRST_MS,
    NODE_LAST_MS,
    UNMEASURED,
    CRITICAL,
    ERROR_MS,
    LAST_REQUEST,
    FIRST_REQUEST,
    HELD_REQUEST,
    LINK,
    TAKEOVER,
    TAKEOVERS,
    BOOT,
    SITE,
    DRILL,
    DRILL_REQUESTS,
    DRILL_FAILED,
    DRILL_GAP_MS,
    DRILL_MISSED,
    DRILL_COMMAND,
    CLUSTER,
    ATTEMPTS,
    FLAGS,
    DETAILS,
    DURATION_MS,
    HOST,
    DRILL_LOST,
    DRILL_LOST_ASYNC,
    DRILL_LOST_REPLICAS,
    WRITES_FENCED,
    WRITES_LOST,
    WRITES_BREACHED,
    DRILL_NEEDLESS,
    RETURNED_ALIVE,
    COULD_NOT_SERVE,
    STOP_OR_START,
    COPY_SESSIONS,
    COPY_BYTES,
    COPY_LONGEST_MS,
    LOSSES,
    LOSS_SECONDS,
)

# What front Envoys count, as metrics (docs/telemetry.md), and how often they tell, in seconds.
COUNT_REQUESTS: Final = "understudy.requests"
COUNT_FAILED: Final = "understudy.requests.failed"
COUNT_KEYLESS: Final = "understudy.requests.keyless"
COUNT_LIMITED: Final = "understudy.requests.limited"
COUNT_DURATION: Final = "understudy.requests.duration"
COUNT_UNREACHED: Final = "understudy.member.unreached"
COUNT_SERVED: Final = "understudy.member.requests"
SITE_PREFIX: Final = "site:"
"""What the site of an Envoy begins with: Envoy does not accept an attribute of its environment that has no value."""
COUNT_DROPPED: Final = "understudy.reports.dropped"
COUNT_UPTIME: Final = "understudy.uptime"
COUNT_POOL_KEYED: Final = "understudy.pool.requests.keyed"
COUNT_POOL_KEYLESS: Final = "understudy.pool.requests.keyless"
COUNT_POOL_FAILED: Final = "understudy.pool.requests.failed"
METRICS: Final = (
    COUNT_REQUESTS,
    COUNT_FAILED,
    COUNT_KEYLESS,
    COUNT_LIMITED,
    COUNT_DURATION,
    COUNT_UNREACHED,
    COUNT_SERVED,
    COUNT_DROPPED,
    COUNT_UPTIME,
    COUNT_POOL_KEYED,
    COUNT_POOL_KEYLESS,
    COUNT_POOL_FAILED,
)
COUNT_SECONDS: Final = 5
KEYLESS_ROUTES: Final = "keyless"
KEYED_ROUTES: Final = "keyed"
"""What the statistics of routes for requests without a session key are called in Envoy."""

# OpenTelemetry semantic conventions that we fill in.
SERVICE_NAME: Final = "service.name"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
SERVICE_VERSION: Final = "service.version"
ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_STATUS: Final = "http.response.status_code"
NODE_NAME: Final = "node_name"
"""On the resource of what Envoy reports: its node's id, by Envoy's own word."""
CONVENTIONS: Final = (SERVICE_NAME, SERVICE_INSTANCE_ID, SERVICE_VERSION, ERROR_TYPE, HTTP_METHOD, HTTP_STATUS)

# Values of service.name.
SERVICE_CONTROL: Final = "understudy-control"
SERVICE_SIDECAR: Final = "understudy-sidecar"
SERVICE_CLIENT: Final = "understudy-client"
SERVICE_ENVOY: Final = "understudy-envoy"
SERVICES: Final = (SERVICE_CONTROL, SERVICE_SIDECAR, SERVICE_CLIENT)
"""Who records failover traces. Front Envoys (``SERVICE_ENVOY``) record requests."""
