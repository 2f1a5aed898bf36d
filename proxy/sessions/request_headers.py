"""The request headers of a session call, and the refusal of those of ours that nobody knows. Pure.

A typo in ``Understudy-Consistency`` must not silently mean the default. Only the session API refuses headers: a member
takes forwarded calls as they are, because a newer member may have checked them. The list of headers is
:data:`understudy.statesync.http.headers.SESSION_HEADERS`.
"""

from collections.abc import Mapping
from difflib import get_close_matches

from understudy.proxy.http.problems import Reply, problem
from understudy.statesync.http.headers import (
    ADMIN_HEADER,
    ADMIN_VALUE,
    CONSISTENCIES,
    CONSISTENCY_HEADER,
    DURABILITIES,
    DURABILITY_HEADER,
    PRIORITY_HEADER,
    SESSION_HEADERS,
    TOUCH_HEADER,
    TOUCH_VALUE,
)
from understudy.statesync.pool.priority import PRIORITIES
from understudy.statesync.sessions.request_log import REQUEST_HEADER

CARRIED = frozenset(
    {
        "content-type",
        "if-match",
        "if-none-match",
        "idempotency-key",
        "traceparent",
        *SESSION_HEADERS,
        REQUEST_HEADER,
    }
)
"""The headers of a session call; all others are dropped."""
NAMES = tuple(name.title().replace("Ttl", "TTL") for name in (REQUEST_HEADER, *SESSION_HEADERS, ADMIN_HEADER))
"""Our request headers, as docs/api.md writes them."""
_PREFIX = "understudy-"
_VALUES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(CARRIED, ()),
    ADMIN_HEADER: (ADMIN_VALUE,),
    CONSISTENCY_HEADER: CONSISTENCIES,
    DURABILITY_HEADER: DURABILITIES,
    PRIORITY_HEADER: PRIORITIES,
    TOUCH_HEADER: (TOUCH_VALUE,),
}
"""The headers that are read, and the values that each may have; empty: what uses the header checks it."""
_SHOWN_MOST = 64
"""Characters of a name or value that a refusal repeats."""


def carried_headers(sent: Mapping[str, str]) -> dict[str, str]:
    """The headers of a forwarded call that matter, by lower-case name; of several with one name the first."""
    headers: dict[str, str] = {}
    for name, value in sent.items():
        low = name.lower()
        if low in CARRIED:
            headers.setdefault(low, value)
    return headers


def session_headers(sent: Mapping[str, str]) -> dict[str, str] | Reply:
    """The headers of an application's call that matter, as above, or the refusal of a header of ours."""
    headers: dict[str, str] = {}
    for name, value in sent.items():
        low = name.lower()
        valid = _VALUES.get(low)
        if valid is not None:
            if valid and value not in valid:
                return _unknown_value(low, value, valid)
            headers.setdefault(low, value)
        elif low.startswith(_PREFIX):
            return _unknown_name(name, value)
    headers.pop(ADMIN_HEADER, None)
    return headers


def _unknown_name(name: str, value: str) -> Reply:
    rest = {known.removeprefix("Understudy-").lower(): known for known in NAMES}
    close = get_close_matches(name[len(_PREFIX) :][:_SHOWN_MOST].lower(), rest, n=1)
    return _refusal(name, value, NAMES, "is no header of this API", rest[close[0]] if close else "")


def _unknown_value(name: str, value: str, valid: tuple[str, ...]) -> Reply:
    close = get_close_matches(value[:_SHOWN_MOST].lower(), valid, n=1)
    shown = next(known for known in NAMES if known.lower() == name)
    return _refusal(shown, value, valid, f"cannot have the value {value[:_SHOWN_MOST]!r}", close[0] if close else "")


def _refusal(name: str, value: str, valid: tuple[str, ...], fault: str, nearest: str) -> Reply:
    shown = name[:_SHOWN_MOST]
    guess = f"; did you mean {nearest}?" if nearest else ""
    detail = f"{shown} {fault}; valid: {', '.join(valid)}{guess}"
    cut = value[:_SHOWN_MOST]
    return problem(400, "bad-request", detail, header=shown, value=cut, valid=valid, nearest=nearest or None)
