"""What istiod, its agent and a Kubernetes cluster would give a proxy, made for one Service, and the real Envoy on it.

:class:`Istiod` generates clusters, endpoints, listeners and routes in the shapes that istiod gives them, applies the
``EnvoyFilter`` resources of the moment (:mod:`tests.deploy.kubernetes.istio.envoyfilter`) and serves the result by our
own xDS server, certificates too, as the agent does. Left out is what stock Envoy has no code for, Istio's own filters
(``istio.stats``, ``istio.metadata_exchange``, ``istio.alpn``), and iptables: listeners bind to addresses.
"""

import random
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors  # noqa: F401
from envoy_data_plane.envoy.extensions.filters.http.fault.v3 import HttpFault  # noqa: F401
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router  # noqa: F401
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import TlsInspector  # noqa: F401
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401
    HttpConnectionManager,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request.v3 import LeastRequest  # noqa: F401
from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3 import OverrideHost  # noqa: F401
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (  # noqa: F401
    DownstreamTlsContext,
    Secret,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions  # noqa: F401

from tests.deploy.kubernetes.istio.envoyfilter import Proxy, effective, patch_bootstrap, patch_cluster, patch_listener
from tests.harness.envoy import Envoy, running_envoy
from understudy.deploy.kubernetes.istio.plan import MeshPlan
from understudy.deploy.kubernetes.istio.tree import files
from understudy.statesync.pool.spec_parts import Mesh
from understudy.statesync.tls.peer_tls import Identity
from understudy.xds.envoy.routing_view import mesh_routes_name
from understudy.xds.server import types
from understudy.xds.server.ads import AdsServer
from understudy.xds.server.cache import ResourceCache

TYPE = "type.googleapis.com/"
HCM = f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
FROM_ADS = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
MANY = 4294967295
GATEWAY = Proxy("GATEWAY", "istio-system", {"istio": "ingressgateway", "app": "istio-ingressgateway"})


def resources_of(plan: MeshPlan, folder: str) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` of a rendered folder would apply."""
    texts = [text for name, text in files(plan).items() if name.startswith(folder) and "kustomization" not in name]
    return [body for text in texts for body in yaml.safe_load_all(text)]


def envoy_filters(plan: MeshPlan, folder: str) -> list[dict[str, Any]]:
    """The EnvoyFilters among them."""
    return [body for body in resources_of(plan, folder) if body["kind"] == "EnvoyFilter"]


@dataclass
class Istiod:
    """The control plane of one proxy. Change ``pods`` or ``filters``, then :meth:`push`.

    ``pods`` are the ready endpoints of the Service (``ip:port``); ``callee``, if the mesh has mTLS, is the identity
    that istiod knows for the Service's accounts. ``listen`` is the port of the listener that leads to it; with
    ``hosts`` it ends their TLS, a chain each.
    """

    proxy: Proxy
    mesh: Mesh
    listen: int
    pods: Sequence[str]
    filters: Sequence[Mapping[str, Any]] = ()
    secrets: Identity | None = None
    callee: str = ""
    hosts: Sequence[str] = ()
    address: str = field(default_factory=lambda: own_network() + "1")
    pool: str = "cart"
    cache: ResourceCache = field(default_factory=ResourceCache)

    @property
    def cluster_name(self) -> str:
        return f"outbound|{self.mesh.port}||{self.mesh.host}"

    async def push(self) -> None:
        """Generate everything, patch it, and let the proxy have it."""
        patches = effective(self.filters, self.proxy)
        cluster, listener = Cluster.from_dict(self._cluster()), Listener.from_dict(self._listener())
        patch_cluster(cluster, patches)
        patch_listener(listener, patches)
        routes = [RouteConfiguration.from_dict(self._routes(name)) for name in self._route_names().values()]
        endpoints = ClusterLoadAssignment.from_dict(self._endpoints())
        await self.cache.set_all(
            {
                types.CLUSTER: {cluster.name: cluster},
                types.ENDPOINTS: {endpoints.cluster_name: endpoints},
                types.LISTENER: {listener.name: listener},
                types.ROUTES: {one.name: one for one in routes},
                types.SECRET: {secret.name: secret for secret in self._secrets()},
            },
            known=frozenset({mesh_routes_name(self.pool)}),
        )
        self.cache.ready()

    def bootstrap(self, socket: str) -> dict[str, Any]:
        """The bootstrap that the agent writes, of which patches are part if it asks istiod for it."""
        one = {"endpoint": {"address": {"pipe": {"path": socket}}}}
        http2 = {
            "@type": f"{TYPE}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }

        def agent(name: str) -> dict[str, Any]:
            return {
                "name": name,
                "type": "STATIC",
                "connect_timeout": "1s",
                "lb_policy": "ROUND_ROBIN",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
                "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [one]}]},
            }

        bootstrap = Bootstrap.from_dict(
            {
                "node": {
                    "id": "router~127.0.0.1~istio-ingressgateway-1.istio-system~istio-system.svc.cluster.local",
                    "cluster": "istio-ingressgateway.istio-system",
                    "locality": {"region": "europe-west1", "zone": "europe-west1-b"},
                    "metadata": {"ISTIO_VERSION": self.proxy.version, "NAMESPACE": self.proxy.namespace},
                },
                "dynamic_resources": {
                    "lds_config": FROM_ADS,
                    "cds_config": FROM_ADS,
                    "ads_config": {
                        "api_type": "DELTA_GRPC",
                        "transport_api_version": "V3",
                        "set_node_on_first_message_only": True,
                        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                    },
                },
                "static_resources": {"clusters": [agent("sds-grpc"), agent("xds-grpc")]},
            }
        )
        patch_bootstrap(bootstrap, effective(self.filters, self.proxy))
        plain: dict[str, Any] = bootstrap.to_dict()
        return plain

    def _cluster(self) -> dict[str, Any]:
        limits = {
            "max_connections": MANY,
            "max_pending_requests": MANY,
            "max_requests": MANY,
            "max_retries": MANY,
            "track_remaining": True,
        }
        cluster = {
            "name": self.cluster_name,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": FROM_ADS, "service_name": self.cluster_name},
            "connect_timeout": "0.25s",
            "lb_policy": "LEAST_REQUEST",
            "circuit_breakers": {"thresholds": [limits]},
            "common_lb_config": {},
            "metadata": {"filter_metadata": {"istio": {"services": [{"host": self.mesh.host}]}}},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": f"{TYPE}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http_protocol_options": {}},
                }
            },
        }
        if self.callee:
            cluster["transport_socket"] = mesh_socket(
                self.callee, sni=f"outbound_.{self.mesh.port}_._.{self.mesh.host}"
            )
        return cluster

    def _endpoints(self) -> dict[str, Any]:
        hosts = []
        for pod in self.pods:
            address, _, port = pod.rpartition(":")
            place = {"socket_address": {"address": address, "port_value": int(port)}}
            hosts.append({"endpoint": {"address": place}, "load_balancing_weight": 1, "health_status": "HEALTHY"})
        locality = {"region": "europe-west1", "zone": "europe-west1-b"}
        groups = [{"locality": locality, "lb_endpoints": hosts, "load_balancing_weight": len(hosts)}] if hosts else []
        return {"cluster_name": self.cluster_name, "endpoints": groups}

    def _listener(self) -> dict[str, Any]:
        address = {"socket_address": {"address": self.address, "port_value": self.listen}}
        listener: dict[str, Any] = {
            "name": f"0.0.0.0_{self.listen}",
            "address": address,
            "traffic_direction": "OUTBOUND",
            "filter_chains": [self._chain(host, routes) for host, routes in self._route_names().items()],
        }
        if self.hosts:
            inspector = f"{TYPE}envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
            name = "envoy.filters.listener.tls_inspector"
            listener["listener_filters"] = [{"name": name, "typed_config": {"@type": inspector}}]
        return listener

    def _chain(self, host: str, routes: str) -> dict[str, Any]:
        manager = {
            "@type": HCM,
            "stat_prefix": f"outbound_0.0.0.0_{self.listen}",
            "rds": {"config_source": FROM_ADS, "route_config_name": routes},
            "http_filters": [
                _http_filter("fault", "fault.v3.HTTPFault"),
                _http_filter("cors", "cors.v3.Cors"),
                _http_filter("router", "router.v3.Router"),
            ],
            "use_remote_address": self.proxy.context == "GATEWAY",
            # As with meshNetworks: private addresses, and here loopback, are callers to be trusted.
            "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
            "stream_idle_timeout": "0s",
            "normalize_path": True,
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "upgrade_configs": [{"upgrade_type": "websocket"}],
        }
        name = "envoy.filters.network.http_connection_manager"
        chain: dict[str, Any] = {"filters": [{"name": name, "typed_config": manager}]}
        if host:
            chain["filter_chain_match"] = {"server_names": [host]}
            chain["transport_socket"] = {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": f"{TYPE}envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": {"tls_certificate_sds_secret_configs": [sds("default")]},
                },
            }
        return chain

    def _route_names(self) -> dict[str, str]:
        """The route configuration of each host; of all of them (an empty name) where there is no TLS."""
        if self.hosts:
            return {host: f"https.{self.listen}.{host}" for host in self.hosts}
        return {"": f"http.{self.listen}" if self.proxy.context == "GATEWAY" else str(self.mesh.port)}

    def _routes(self, name: str) -> dict[str, Any]:
        """What the VirtualService means: everything to the Service, with the retries that Istio has by default."""
        retry = {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "num_retries": 2,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": f"{TYPE}envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
            "host_selection_retry_max_attempts": 5,
        }
        route = {
            "name": "cart",
            "match": {"prefix": "/"},
            "route": {"cluster": self.cluster_name, "timeout": "0s", "retry_policy": retry},
        }
        host = {"name": f"*:{self.listen}", "domains": ["*"], "routes": [route]}
        return {"name": name, "virtual_hosts": [host], "validate_clusters": False}

    def _secrets(self) -> list[Secret]:
        if self.secrets is None:
            return []
        chain, key, root = (path.read_text() for path in (self.secrets.cert, self.secrets.key, self.secrets.ca))
        own = {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}
        return [
            Secret.from_dict({"name": "default", "tls_certificate": own}),
            Secret.from_dict({"name": "ROOTCA", "validation_context": {"trusted_ca": {"inline_string": root}}}),
        ]


def own_network() -> str:
    """The beginning of loopback addresses that no other test has, so that ports on them are surely free."""
    return f"127.{random.SystemRandom().randrange(64, 128)}.{random.SystemRandom().randrange(256)}."


def mesh_socket(identity: str, *, sni: str) -> dict[str, Any]:
    """The transport socket of an outbound cluster with ISTIO_MUTUAL."""
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": sni,
            "common_tls_context": {
                # Istio has istio-peer-exchange here too, for its metadata exchange, which stock Envoy lacks.
                "alpn_protocols": ["istio"],
                "tls_certificate_sds_secret_configs": [sds("default")],
                "combined_validation_context": {
                    "default_validation_context": {"match_subject_alt_names": [{"exact": identity}]},
                    "validation_context_sds_secret_config": sds("ROOTCA"),
                },
            },
        },
    }


def sds(name: str) -> dict[str, Any]:
    """A secret from the agent."""
    source = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
    }
    return {
        "name": name,
        "sds_config": {"api_config_source": source, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
    }


def _http_filter(name: str, message: str) -> dict[str, Any]:
    kind = f"{TYPE}envoy.extensions.filters.http.{message}"
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": kind}}


@asynccontextmanager
async def running_proxy(istiod: Istiod, directory: Path, controls: Sequence[str] = ()) -> AsyncIterator[Envoy]:
    """The proxy of ``istiod``. ``controls`` (``host:port``) are what cluster DNS would say of the control servers."""
    await istiod.push()
    server = AdsServer(istiod.cache)
    with tempfile.TemporaryDirectory(prefix="agent-") as short:
        socket = f"{short}/xds"
        await server.start(f"unix:{socket}")
        try:
            async with running_envoy(_resolved(istiod.bootstrap(socket), controls), directory) as envoy:
                yield envoy
        finally:
            await server.stop()


def _resolved(bootstrap: dict[str, Any], controls: Sequence[str]) -> dict[str, Any]:
    """Put addresses in the place of the one name that only a cluster's DNS knows."""
    for cluster in bootstrap["staticResources"]["clusters"]:
        if cluster["name"].startswith("understudy-xds"):
            places = [control.rpartition(":") for control in controls]
            cluster["type"] = "STATIC"
            cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"] = [
                {"endpoint": {"address": {"socketAddress": {"address": host, "portValue": int(port)}}}}
                for host, _, port in places
            ]
    return bootstrap
