"""How a program adds routes to the HTTP port of its control server, such as those of the console.

A package below must not import one above, so the command that starts a control server hands the routes in.
"""

from collections.abc import Callable

import msgspec
from aiohttp import web

from understudy.statesync.etcd.settings import EtcdSettings
from understudy.telemetry.store.store import SpanStore
from understudy.xds.control.served_pools import Pools


class HttpParts(msgspec.Struct, frozen=True):
    """What added routes may use of a control server.

    Attributes:
        name: the name of the control server.
        pools: the pools that it serves.
        etcds: how it reaches its etcd clusters, and with which logins; a pool has its own in ``PoolService.etcd``.
        store: its trace store.
        guarded: whether callers need rights (:mod:`understudy.xds.control.http_access`), which the port has checked.
    """

    name: str
    pools: Pools
    etcds: tuple[EtcdSettings, ...]
    store: SpanStore
    guarded: bool = False


HttpExtension = Callable[[web.Application, HttpParts], None]
"""Adds routes to the application of the HTTP port, before the port opens."""


def no_extension(_app: web.Application, _parts: HttpParts) -> None:
    """Add nothing."""
