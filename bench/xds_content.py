"""What the xDS benchmark serves: the resources of a pool of 16 members and 256 slots, as a control server makes it."""

from dataclasses import replace

from understudy.statesync.pool.spec import PoolSpec
from understudy.xds.envoy.listener import listener, listener_name
from understudy.xds.envoy.resources import build
from understudy.xds.envoy.routing_view import Endpoint, RoutingView
from understudy.xds.server.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES

POOL = "cart"
SLOTS = 256
MEMBERS = 16
METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


def view(healthy: bool = True) -> RoutingView:
    """The pool; ``healthy`` is that of its first member."""
    names = [f"cart-{number:02}" for number in range(MEMBERS)]
    members = {name: Endpoint(f"10.0.0.{number + 1}", 8000) for number, name in enumerate(names)}
    members[names[0]] = replace(members[names[0]], healthy=healthy)
    orders = []
    for slot in range(SLOTS):
        active, step = slot % MEMBERS, 1 + slot // MEMBERS % (MEMBERS - 1)
        orders.append(tuple(names[(active + turn * step) % MEMBERS] for turn in range(3)))
    return RoutingView(PoolSpec(pool=POOL, slots=SLOTS), members, [tuple(dict.fromkeys(order)) for order in orders])


def content(healthy: bool = True, listen: tuple[str, int] = ("127.0.0.1", 10_000)) -> dict[str, dict[str, bytes]]:
    """All four types."""
    return {**build(view(healthy)), LISTENER: {listener_name(POOL): listener(POOL, *listen)}}


def one_change(healthy: bool) -> dict[str, bytes]:
    """The one assignment that changes: that of the first member's cluster."""
    name = f"{POOL}/member/cart-00"
    return {name: build(view(healthy))[ENDPOINTS][name]}


def subscriptions() -> list[tuple[str, list[str]]]:
    """What a front Envoy asks for: everything of CDS and LDS, the rest by name."""
    made = content()
    return [(CLUSTER, []), (ENDPOINTS, sorted(made[ENDPOINTS])), (LISTENER, []), (ROUTES, sorted(made[ROUTES]))]
