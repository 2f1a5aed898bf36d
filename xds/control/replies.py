"""The replies of the admin interface: JSON, and problem documents (RFC 9457)."""

import dataclasses
import json
from typing import Any

from aiohttp import web

from understudy.statesync.pool.records import MemberState


def problem_reply(status: int, kind: str, title: str, detail: str) -> web.Response:
    """A problem document (RFC 9457)."""
    body = {"type": f"urn:understudy:{kind}", "title": title, "status": status, "detail": detail}
    return web.Response(status=status, text=json.dumps(body), content_type="application/problem+json")


def json_reply(value: Any) -> web.Response:  # noqa: ANN401 - any view
    """A view as JSON."""
    return web.Response(text=json.dumps(value, default=_plain), content_type="application/json")


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON's way to ask for what it does not know
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, MemberState):
        return str(value)
    return dict(value) if hasattr(value, "keys") else list(value)
