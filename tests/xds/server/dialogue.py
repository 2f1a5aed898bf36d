"""One stream's stream_state and the client on its other end, on a clock that the test turns."""

from collections.abc import Mapping

import pytest

from tests.xds.server.made import cluster, endpoints, listener, routes
from understudy.xds.server import types
from understudy.xds.server.snapshot import Resource, Snapshot, TypeSnapshot, encode
from understudy.xds.server.stream import StreamState
from understudy.xds.server.stream_config import EncodedResponse, StreamLimits, StreamTimeouts, Variant
from understudy.xds.server.wire import DeltaDiscoveryResponse, DiscoveryResponse, Node, Request

CDS, EDS, LDS, RDS = types.CLUSTER, types.ENDPOINTS, types.LISTENER, types.ROUTES
BOTH = pytest.mark.parametrize("variant", list(Variant))
SECOND = 1_000_000_000


def a_pool(*clusters: str, to: str = "", mark: str = "", port: int = 1) -> dict[str, dict[str, Resource]]:
    content = {
        CDS: {name: cluster(name, mark=mark) for name in clusters},
        EDS: {name: endpoints(name, port) for name in clusters},
        LDS: {"l": listener("l", 80, "r")},
        RDS: {"r": routes("r", to or clusters[0])},
    }
    return {kind: {name: encode(kind, name, bytes(one)) for name, one in of.items()} for kind, of in content.items()}


class Dialogue:
    """A client that subscribes like Envoy, and acknowledges when the test says so."""

    def __init__(
        self, variant: Variant, timeouts: StreamTimeouts | None = None, limits: StreamLimits | None = None
    ) -> None:
        self.stream_state = StreamState(variant, prefix="n", timeouts=timeouts or StreamTimeouts(), limits=limits)
        self.variant = variant
        self.now = 0
        self.types: dict[str, TypeSnapshot] = {}
        self.last: dict[str, EncodedResponse] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.before: dict[bytes, str] = {}

    def content(self, content: Mapping[str, Mapping[str, Resource]]) -> None:
        for kind, resources in content.items():
            made = TypeSnapshot(resources)
            if kind not in self.types or made.since(self.types[kind]):
                self.types[kind] = made
        self.stream_state.offer(Snapshot(dict(self.types)))

    def ask(self, type_url: str, *names: str, version: str = "") -> None:
        added = tuple(name for name in names if name not in self.names.get(type_url, ()))
        self.names[type_url] = names
        last = self.last.get(type_url)
        if self.variant is Variant.DELTA:
            request = Request(type_url, Node("front"), subscribe=added)
        else:
            nonce = last.nonce if last else ""
            request = Request(type_url, Node("front"), names=names, nonce=nonce, version=version)
        self.stream_state.on_request(request, self.now)

    def acknowledge(self, *type_urls: str, error: str | None = None) -> None:
        for type_url in type_urls:
            last = self.last[type_url]
            request = Request(
                type_url,
                nonce=last.nonce,
                version=last.version,
                names=self.names[type_url] if self.variant is Variant.SOTW else (),
                error=error,
            )
            self.stream_state.on_request(request, self.now)

    def said(self) -> list[str]:
        """What goes out now, as short type names with the names carried (and -names removed)."""
        out = []
        while (outgoing := self.stream_state.next(self.now)) is not None:
            self.last[outgoing.type_url] = outgoing
            out.append(f"{types.short_name(outgoing.type_url)} {' '.join(self.carried(outgoing))}".strip())
        return out

    def carried(self, outgoing: EncodedResponse) -> list[str]:
        if self.variant is Variant.DELTA:
            message = DeltaDiscoveryResponse.FromString(outgoing.data)
            return [one.name for one in message.resources] + [f"-{name}" for name in message.removed_resources]
        message = DiscoveryResponse.FromString(outgoing.data)
        known = {one.packed: name for kind in self.types.values() for name, one in kind.resources.items()}
        known |= self.before
        return [known[one.SerializeToString()] for one in message.resources]

    def later(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def everything_acknowledged(self) -> None:
        self.before = {one.packed: name for kind in self.types.values() for name, one in kind.resources.items()}
        self.acknowledge(*self.last)
        assert self.said() == []
        assert self.stream_state.settled


def a_settled_client(variant: Variant, *clusters: str, timeouts: StreamTimeouts | None = None) -> Dialogue:
    dialogue = Dialogue(variant, timeouts)
    dialogue.content(a_pool(*clusters))
    dialogue.ask(CDS)
    dialogue.ask(EDS, *clusters)
    dialogue.ask(LDS)
    dialogue.ask(RDS, "r")
    dialogue.said()
    dialogue.everything_acknowledged()
    return dialogue
