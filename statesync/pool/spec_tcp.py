"""The part of the spec that only TCP pools have: keys of their own, other defaults, and keys that they must not set.

Part of :mod:`understudy.statesync.pool.spec`, which checks the result.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_TCP_SLOTS = 4096
"""An Envoy keeps a cluster for every slot of a TCP pool, about 34 KB each (docs/benchmarks.md)."""

_DEFAULTS: dict[str, Any] = {
    "session_key": [{"source_address": True}],
    "tcp": {},
    # Envoy retries a connection without avoiding the member that refused it; only an ejected member is skipped.
    "outliers": {"failures": 1},
    # A failed check ends connections here, so one late answer must not be enough.
    "health_checks": {"interval_ms": 250, "timeout_ms": 500, "failures": 2},
    "timeouts": {"idle_seconds": 3600},
}
MEANS_NOTHING = {
    "timeouts": {"request_seconds", "keep_alive_ms", "ping_ms"},
    "retries": {"at_once", "hedge", "hedge_ms"},
}
"""Keys for requests, which the spec of a TCP pool must not have."""


class Tcp(BaseModel):
    """Settings of pools with ``protocol: tcp``.

    ``accept_proxy_protocol``: the front Envoys' clients are proxies that send the client's address in a PROXY header
    (v1 or v2); a connection without one is refused. ``send_proxy_protocol``: how a member's application is told the
    client's address, which is its session key. ``ping`` is what a sidecar sends to its application, ``pong`` how the
    answer must begin; without either, an application that accepts connections is healthy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    accept_proxy_protocol: bool = False
    send_proxy_protocol: Literal["v1", "v2", "none"] = "v1"
    ping: Annotated[str, Field(max_length=256)] = ""
    pong: Annotated[str, Field(max_length=256)] = ""

    @model_validator(mode="after")
    def _expects_something(self) -> "Tcp":
        if self.ping and not self.pong:
            raise ValueError("ping without pong: say how the application's answer begins")
        return self


def with_tcp_defaults(raw: Any) -> Any:  # noqa: ANN401 - from YAML or a constructor
    """The raw spec of a TCP pool with the defaults that differ there; any other one as it is."""
    if not isinstance(raw, dict) or raw.get("protocol") != "tcp":
        return raw
    merged = dict(raw)
    for key, default in _DEFAULTS.items():
        given = merged.setdefault(key, default)
        if isinstance(default, dict) and isinstance(given, dict):
            merged[key] = {**default, **given}
    return merged


def without_effect(raw: Mapping[str, Any]) -> list[str]:
    """Keys in the spec of a TCP pool that would have no effect, one line each."""
    if raw.get("protocol") != "tcp":
        return []
    return [
        f"{group}.{key}: a tcp pool has no requests, only connections; leave it out"
        for group, keys in MEANS_NOTHING.items()
        if isinstance(given := raw.get(group), dict)
        for key in sorted(keys & given.keys())
    ]
