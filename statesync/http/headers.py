"""The headers by which an application tells its sidecar more than its users may say. Pure.

Front Envoys remove all headers with these prefixes from clients' requests (:mod:`understudy.xds.envoy.listener`), so
that an application which hands on what it was sent does not hand on a user's wish. The proxies of a mesh remove the
headers that are named here.
"""

CLIENTS_MAY_NOT = ("understudy-", "x-understudy-")
"""Prefixes of headers that mean something to Envoys and sidecars of ours."""

ADMIN_HEADER = "understudy-admin"
"""Marks a call that changes the member, not a session: a check, a drain."""
ADMIN_VALUE = "true"

CALLER_HEADER = "understudy-caller"
"""Whose ``Idempotency-Key`` it is on a ``POST`` that makes a session."""

TTL_HEADER = "understudy-ttl"
CONSISTENCY_HEADER = "understudy-consistency"
DURABILITY_HEADER = "understudy-durability"

SESSION_HEADERS = (CALLER_HEADER, TTL_HEADER, CONSISTENCY_HEADER, DURABILITY_HEADER)
"""The headers of ours that a session call may have. A new one is added here: the session API drops all others."""

APPLICATION_HEADERS = (ADMIN_HEADER, *SESSION_HEADERS)
"""The headers that only applications set on calls to their sidecar."""


def lost_at_the_front(name: str) -> str:
    """Why a client's header of this name does not come through a front Envoy; '' if it does."""
    if "_" in name:
        return f"front Envoys refuse requests with an underscore in a header's name (got {name!r})"
    if name.lower().startswith(CLIENTS_MAY_NOT):
        return f"front Envoys remove headers that begin with {' or '.join(CLIENTS_MAY_NOT)} (got {name!r})"
    return ""
