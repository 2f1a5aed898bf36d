"""An xDS server as a library, usable alone: cache, streams, order, status. It imports nothing of ours outside itself.

Put resources into a :class:`ResourceCache` and give it to an :class:`AdsServer`; docs/xds.md has a complete example.
The names are loaded when they are first used, so importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.xds.server.ads import AdsServer as AdsServer
    from understudy.xds.server.ads import StreamSettings as StreamSettings
    from understudy.xds.server.cache import ResourceCache as ResourceCache
    from understudy.xds.server.events import ConfigRejected as ConfigRejected
    from understudy.xds.server.events import InvalidResources as InvalidResources
    from understudy.xds.server.events import NotAcknowledged as NotAcknowledged
    from understudy.xds.server.stream_config import StreamLimits as StreamLimits
    from understudy.xds.server.stream_config import StreamTimeouts as StreamTimeouts
    from understudy.xds.server.stream_quota import QuotaLimits as QuotaLimits
else:
    PUBLIC = {
        "AdsServer": "ads",
        "StreamSettings": "ads",
        "ResourceCache": "cache",
        "ConfigRejected": "events",
        "InvalidResources": "events",
        "NotAcknowledged": "events",
        "StreamLimits": "stream_config",
        "StreamTimeouts": "stream_config",
        "QuotaLimits": "stream_quota",
    }

    def __getattr__(name: str) -> object:
        """Load a public name from its module."""
        if name not in PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)
