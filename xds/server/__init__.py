"""An xDS server as a library, usable alone: cache, streams, order, status. It imports nothing of ours outside itself.

Put resources into a :class:`ResourceCache` and give it to an :class:`AdsServer`; docs/xds.md has a complete example.
The names are loaded when they are first used, so importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.xds.server.ads import AdsServer, StreamSettings
    from understudy.xds.server.cache import ResourceCache
    from understudy.xds.server.events import (
        AckEvent,
        CacheError,
        ConfigRejected,
        InvalidResources,
        NotAcknowledged,
        PushEvent,
        TypeStatus,
    )
    from understudy.xds.server.responses import ConfigStatus
    from understudy.xds.server.stream_config import StreamLimits, StreamTimeouts
    from understudy.xds.server.stream_quota import QuotaLimits
    from understudy.xds.server.wire import Node

__all__ = [
    "AckEvent",
    "AdsServer",
    "CacheError",
    "ConfigRejected",
    "ConfigStatus",
    "InvalidResources",
    "Node",
    "NotAcknowledged",
    "PushEvent",
    "QuotaLimits",
    "ResourceCache",
    "StreamLimits",
    "StreamSettings",
    "StreamTimeouts",
    "TypeStatus",
]

if not TYPE_CHECKING:
    _MODULES = {
        "ads": ("AdsServer", "StreamSettings"),
        "cache": ("ResourceCache",),
        "responses": ("ConfigStatus",),
        "stream_config": ("StreamLimits", "StreamTimeouts"),
        "stream_quota": ("QuotaLimits",),
        "wire": ("Node",),
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> object:
        """Load a public name from its module."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_MODULE_OF.get(name, 'events')}")
        return getattr(module, name)
