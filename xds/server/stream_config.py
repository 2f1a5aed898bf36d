"""The configuration of a stream (variant, timeouts, limits) and the responses that it makes.

The stream itself is :mod:`understudy.xds.server.stream`, the gRPC around it :mod:`understudy.xds.server.ads`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Variant(Enum):
    """The two ways of speaking xDS."""

    SOTW = "sotw"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class StreamTimeouts:
    """How long the stream waits for a node, in seconds.

    Attributes:
        ack_wait: while a response is unacknowledged, the next one of that type waits this long at most, so that a burst
            of changes becomes one response. Responses to requests, and endpoints, do not wait.
        warm_timeout: routes wait this long at most until the node acknowledges the clusters that they newly name
            (Envoy does so when the clusters are warm).
        removal_timeout: removals wait this long at most for the acknowledgement of resources that stopped using them.
        removal_linger: after that they wait this long for requests that were routed before. Envoy looks up a request's
            cluster again for every retry, and answers 503 (UH) if it is gone. So it must be as long as the longest
            request.
        sibling_timeout: another stream with the same node id delays this stream for this long at most, where nothing
            else limits the wait (it rejects content, or does not read). Node ids must be unique. If they are not, the
            other stream belongs to another client.
    """

    ack_wait: float = 0.25
    warm_timeout: float = 5.0
    removal_timeout: float = 10.0
    removal_linger: float = 0.0
    sibling_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one stream may ask for, and the size of its responses. Past a limit it ends with RESOURCE_EXHAUSTED.

    Attributes:
        names: names of one type.
        types: types on one stream.
        message: bytes of one delta response. A larger one is sent as several responses, since gRPC clients take
            messages of 4 MiB by default. A resource that is larger by itself is sent alone.
    """

    names: int = 100_000
    types: int = 64
    message: int = 3_500_000


class RequestRefused(Exception):
    """A request that ends its stream. ``exhausted``: it passed a limit; otherwise it was invalid."""

    def __init__(self, detail: str, *, exhausted: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.exhausted = exhausted


class EncodedResponse(NamedTuple):
    """One response, ready for the wire. ``asked``: its cause is not a change of content."""

    type_url: str
    version: str
    nonce: str
    data: bytes
    resources: int
    removed: int
    asked: bool = False
