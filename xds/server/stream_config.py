"""The terms on which a stream runs: its variant, its patience, its limits, and what comes out of it.

The conversation itself is :mod:`understudy.xds.server.stream`, the gRPC around it :mod:`understudy.xds.server.ads`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Variant(Enum):
    """The two ways of speaking xDS."""

    SOTW = "sotw"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the stream waits for a node, in seconds.

    Attributes:
        ack_wait: while an answer of a type is unanswered, the next of that type waits this long at most, so that a
            burst of changes becomes one. A request is answered, and endpoints are sent, without waiting.
        warm_limit: routes wait this long at most until the node acknowledges the clusters that they newly name
            (Envoy delays that until the clusters are warm).
        removal_limit: removals wait this long at most for the acknowledgement of what stopped using them.
        removal_linger: and then so long for the requests that were routed before: Envoy looks a request's cluster up
            again for every retry, and answers 503 (UH) if it is gone. So not less than the longest request.
        beside_limit: another stream with the same node id holds this stream up so long at most where nothing else
            limits the wait (it refuses content, or does not read). Node ids should be unique; if they are not, the
            other stream is another client's.
    """

    ack_wait: float = 0.25
    warm_limit: float = 5.0
    removal_limit: float = 10.0
    removal_linger: float = 0.0
    beside_limit: float = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one stream may ask for, past which it ends with RESOURCE_EXHAUSTED, and the size of what it is sent.

    Attributes:
        names: names of one type.
        types: types on one stream.
        message: bytes of one delta response. More than that is sent as several responses, since gRPC clients take
            messages of 4 MiB by default. A resource that is larger by itself goes alone.
    """

    names: int = 100_000
    types: int = 64
    message: int = 3_500_000


class Refused(Exception):
    """A request that ends its stream: ``exhausted`` tells a passed limit from an invalid argument."""

    def __init__(self, detail: str, *, exhausted: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.exhausted = exhausted


class Outgoing(NamedTuple):
    """One response, ready for the wire. ``asked``: something else than a change is its cause."""

    type_url: str
    version: str
    nonce: str
    data: bytes
    resources: int
    removed: int
    asked: bool = False
