"""From a calling pod's sidecar to the members' sidecars over mTLS, and to the control servers as well.

Certificates are real and come from the agent's SDS; what ends the mTLS in the members' pods and in the control
server's is an Envoy with inbound listeners as istiod makes them, patched like the rest.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector  # noqa: F401 - registers it
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import TcpProxy  # noqa: F401
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import DownstreamTlsContext  # noqa: F401

from tests.deploy.kubernetes.istio.envoyfilter import Proxy, effective, patch_listener
from tests.deploy.kubernetes.istio.members import App, join, running_apps
from tests.deploy.kubernetes.istio.meshlike import HCM, TYPE, Istiod, envoy_filters, own_network, running_proxy
from tests.harness.certificates import Authority
from tests.harness.envoy import Envoy, running_envoy
from tests.harness.waiting import free_port, until
from tests.xds.control.control_pool import SLOTS, ControlPool, control_pool
from understudy.deploy.kubernetes.istio.plan import MeshPlan
from understudy.deploy.kubernetes.istio.tree import PREPARE, ROUTE
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_parts import Liveness, Mesh, Retries
from understudy.statesync.tls.peer_tls import Identity

MESH = Mesh(host="cart-slots.cart.svc.cluster.local")
SPEC = PoolSpec(
    pool="cart", slots=SLOTS, mesh=MESH, liveness=Liveness(missed_beats=30), retries=Retries(hedge_ms=10_000)
)
"""No call goes to a second member because the first one stands still for a moment."""
WEB = Proxy("SIDECAR_OUTBOUND", "shop", {"app": "web"})
MEMBER = Proxy("SIDECAR_INBOUND", "cart", {"understudy.io/pool": "cart"})
MEMBERS = ("cart-1", "cart-2", "cart-3")
ACCOUNTS = {"web": "shop", "cart": "cart", "control-cart": "understudy"}


def identity_of(account: str) -> str:
    return f"spiffe://cluster.local/ns/{ACCOUNTS[account]}/sa/{account}"


@dataclass
class Caller:
    """The calling pod: its proxy, and the applications behind it."""

    url: str
    http: aiohttp.ClientSession
    pool: ControlPool
    orders: tuple[tuple[str, ...], ...]
    apps: dict[str, App]
    notes: Path
    inbound: Envoy

    async def ask(self, method: str, key: str = "", path: str = "/", **headers: str) -> tuple[int, str]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()} | (
            {"x-session-id": key} if key else {}
        )
        async with self.http.request(method, f"{self.url}{path}", headers=sent) as answer:
            return answer.status, await answer.text()

    def order_of(self, key: str) -> tuple[str, ...]:
        return self.orders[slot_of(key, SLOTS)]

    def keys_of(self, active: str, count: int) -> list[str]:
        keys = (f"key-{number}" for number in range(10_000))
        return [key for key in keys if self.order_of(key)[0] == active][:count]

    def seen(self, mark: str) -> list[str]:
        lines = (line.split(" ") for line in self.notes.read_text().splitlines())
        return [who for who, what in lines if what == mark]


@asynccontextmanager
async def caller(directory: Path) -> AsyncIterator[Caller]:
    authority = Authority(directory / "ca")
    own = {account: authority.issue(account, f"URI:{identity_of(account)}") for account in ACCOUNTS}
    app_port, listen = free_port(), free_port()
    network = own_network()
    pods = {name: f"{network}{number}" for number, name in enumerate(MEMBERS, 1)}
    plan = MeshPlan(SPEC, "client", (1, 29), proxy_namespace="shop", selector={"app": "web"}, app_port=app_port)
    filters = [*envoy_filters(plan, PREPARE), *envoy_filters(plan, ROUTE)]
    with running_apps(MEMBERS, directory / "notes") as apps:
        async with control_pool(directory) as pool, aiohttp.ClientSession() as http:
            await pool.apply(SPEC)
            control = await pool.control()
            orders = await join(pool, {name: f"{pod}:{app_port}" for name, pod in pods.items()})
            listeners, clusters = [], []
            for name, pod in pods.items():
                listeners.append(inbound_http(pod, app_port, own["cart"], filters))
                clusters.append(static(f"inbound|{app_port}||{pod}", apps[name].port))
            to_control = free_port()
            listeners.append(inbound_tcp(to_control, own["control-cart"]))
            clusters.append(static("inbound|18000||", int(control.grpc.rpartition(":")[2])))
            bootstrap = {
                "node": {"id": "inbound", "cluster": "cart"},
                "static_resources": {"listeners": listeners, "clusters": clusters},
            }
            istiod = Istiod(
                WEB,
                MESH,
                listen,
                [f"{pod}:{app_port}" for pod in pods.values()],
                filters,
                own["web"],
                identity_of("cart"),
            )
            # iptables would bring the call to the Service's port to this listener; its match is by that port.
            istiod.filters = [on_port(one, listen) for one in filters]
            async with (
                running_envoy(bootstrap, directory / "inbound") as inbound,
                running_proxy(istiod, directory / "web", [f"127.0.0.1:{to_control}"]),
            ):
                url = f"http://{istiod.address}:{listen}"
                calling = Caller(url, http, pool, orders, apps, directory / "notes", inbound)
                await until(lambda: every_member_answers(calling), 60, "every member answers for its slots")
                yield calling


async def every_member_answers(calling: Caller) -> bool:
    return all([await calling.ask("GET", calling.keys_of(name, 1)[0]) == (200, name) for name in MEMBERS])


def on_port(body: dict[str, Any], port: int) -> dict[str, Any]:
    """The resource with its listener match for the port at which the test's proxy listens."""
    patches = []
    for patch in body["spec"]["configPatches"]:
        listener = patch["match"].get("listener")
        match = {**patch["match"], "listener": {**listener, "portNumber": port}} if listener else patch["match"]
        patches.append({**patch, "match": match})
    return {**body, "spec": {**body["spec"], "configPatches": patches}}


def static(name: str, port: int) -> dict[str, Any]:
    place = {"endpoint": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": port}}}}
    return {
        "name": name,
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": {"clusterName": name, "endpoints": [{"lbEndpoints": [place]}]},
    }


def strict_mtls(own: Identity) -> dict[str, Any]:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [
                    {"certificate_chain": {"filename": str(own.cert)}, "private_key": {"filename": str(own.key)}}
                ],
                "validation_context": {"trusted_ca": {"filename": str(own.ca)}},
            },
        },
    }


def inbound_http(pod: str, port: int, own: Identity, filters: list[dict[str, Any]]) -> dict[str, Any]:
    """The listener of a member's proxy: the chain of the application's port, with mTLS and inline routes."""
    route = {
        "name": "default",
        "match": {"prefix": "/"},
        "route": {"cluster": f"inbound|{port}||{pod}", "timeout": "0s"},
    }
    manager = {
        "@type": HCM,
        "stat_prefix": f"inbound_0.0.0.0_{port}",
        "route_config": {
            "name": f"inbound|{port}||",
            "virtual_hosts": [{"name": f"inbound|http|{port}", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router"}}
        ],
        "use_remote_address": False,
        "forward_client_cert_details": "APPEND_FORWARD",
    }
    listener = Listener.from_dict(
        {
            "name": "virtualInbound",
            "address": {"socket_address": {"address": pod, "port_value": port}},
            "filter_chains": [
                {
                    "filter_chain_match": {"destination_port": port, "transport_protocol": "tls"},
                    "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
                    "transport_socket": strict_mtls(own),
                }
            ],
            "listener_filters": [
                {
                    "name": "envoy.filters.listener.tls_inspector",
                    "typed_config": {"@type": f"{TYPE}envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"},
                }
            ],
        }
    )
    patch_listener(listener, effective(filters, MEMBER))
    plain: dict[str, Any] = listener.to_dict()
    # Three pods share one Envoy here, whose listeners need names of their own.
    return {**plain, "name": f"virtualInbound-{pod}", "statPrefix": f"pod-{pod.rpartition('.')[2]}"}


def inbound_tcp(port: int, own: Identity) -> dict[str, Any]:
    proxy = {
        "@type": f"{TYPE}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "control",
        "cluster": "inbound|18000||",
    }
    return {
        "name": "control",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
                "transport_socket": strict_mtls(own),
            }
        ],
    }


async def test_calls_go_by_slot_over_mtls_and_what_dies_behind_a_living_proxy_is_left(tmp_path: Path) -> None:
    async with caller(tmp_path) as web:
        for number in range(100):
            key = f"key-{number}"
            assert await web.ask("GET", key) == (200, web.order_of(key)[0])
        assert {(await web.ask("POST"))[1] for _ in range(40)} == set(MEMBERS)

        handshakes = [await web.inbound.stat(f"listener.pod-{n}.ssl.handshake") for n in (1, 2, 3)]
        assert min(handshakes) > 0
        pod = web.pool.members["cart-1"].record.app
        with pytest.raises(aiohttp.ClientError):
            await web.http.get(f"http://{pod}/")

        key = web.keys_of("cart-1", 1)[0]
        second = web.order_of(key)[1]
        may = [asyncio.create_task(web.ask("GET", key, "/wait", x_request="may")) for _ in range(5)]
        not_ = [asyncio.create_task(web.ask("POST", key, "/wait", x_request="once")) for _ in range(5)]
        await until(lambda: len(web.seen("may")) >= 5 and len(web.seen("once")) == 5, 40, "requests are under way")
        web.apps["cart-1"].kill()

        assert {await web.ask("POST", key) for key in web.keys_of("cart-1", 30)} <= {(200, m) for m in MEMBERS[1:]}
        assert Counter(await asyncio.gather(*not_)) == {(503, not_[0].result()[1]): 5}
        assert web.seen("once") == ["cart-1"] * 5
        web.notes.with_name("notes.go").touch()
        assert {status for status, _ in await asyncio.gather(*may)} == {200}
        assert web.seen("may").count(second) >= 5, "the next in order is asked, and a third only if that takes long"
        assert {(await web.ask("POST"))[0] for _ in range(40)} == {200}

        large = b"x" * 1_500_000
        async with web.http.post(f"{web.url}/", data=large, headers={"x-session-id": key}) as answer:
            assert (answer.status, answer.headers["x-body-bytes"]) == (200, str(len(large)))
