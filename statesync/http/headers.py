"""Our request headers: the names of those that only an application may send to its sidecar. Pure.

:data:`SESSION_HEADERS` has the headers of a session call. Front Envoys remove all headers with our prefixes from
clients' requests (:mod:`understudy.xds.envoy.listener`). So an application that passes on a user's headers does not
pass on these. The proxies of a mesh remove the headers that are named here.
"""

CLIENTS_MAY_NOT = ("understudy-", "x-understudy-")
"""Prefixes of headers that our Envoys and sidecars read."""

ADMIN_HEADER = "understudy-admin"
"""Marks a call that changes the member, not a session: a check, a drain."""
ADMIN_VALUE = "true"

CALLER_HEADER = "understudy-caller"
"""The client to whom the ``Idempotency-Key`` of a ``POST`` that makes a session belongs."""

TTL_HEADER = "understudy-ttl"
CONSISTENCY_HEADER = "understudy-consistency"
DURABILITY_HEADER = "understudy-durability"
PRIORITY_HEADER = "understudy-priority"

TOUCH_HEADER = "understudy-touch"
"""On a ``GET``: renew the session by its lifetime."""
TOUCH_VALUE = "true"

CONSISTENCIES = ("linearizable", "stale")
DURABILITIES = ("sync", "async", "replicas")

APP_VERSION_HEADER = "understudy-app-version"
"""On a call that one sidecar forwards to another: the version of the application that made it."""

SESSION_HEADERS = (CALLER_HEADER, TTL_HEADER, CONSISTENCY_HEADER, DURABILITY_HEADER, PRIORITY_HEADER, TOUCH_HEADER)
"""Our headers that a session call may have. Add new ones here: the session API drops all others."""

APPLICATION_HEADERS = (ADMIN_HEADER, *SESSION_HEADERS)
"""The headers that only applications set on calls to their sidecar."""


def lost_at_the_front(name: str) -> str:
    """Why a front Envoy removes a client's header of this name; '' if it does not."""
    if "_" in name:
        return f"front Envoys refuse requests with an underscore in a header's name (got {name!r})"
    if name.lower().startswith(CLIENTS_MAY_NOT):
        return f"front Envoys remove headers that begin with {' or '.join(CLIENTS_MAY_NOT)} (got {name!r})"
    return ""
