"""The connections that network policies must allow: which part connects to which, at which port. Pure.

A part is the pods of a component, or something outside (:data:`CLIENTS`, :data:`API_SERVER`, :data:`PROMETHEUS`).
Nodes are left out: Kubernetes always lets a node reach its own pods, which is how probes work.
"""

from dataclasses import dataclass

from understudy.deploy.kubernetes.base.names import (
    CONTROL,
    ETCD,
    ETCD_PEER_PORT,
    ETCD_PORT,
    FRONT,
    FRONT_PORT,
    FRONT_STATUS_PORT,
    GRPC_PORT,
    HEALTH_PORT,
    HTTP_PORT,
    INJECTOR,
    INJECTOR_METRICS_PORT,
    INJECTOR_PORT,
    MEMBER,
    METRICS_PORT,
    MIRROR,
    MIRROR_METRICS_PORT,
    OPERATOR,
    PEER_PORT,
    SPEC,
)

CLIENTS, API_SERVER, PROMETHEUS = "clients", "API server", "Prometheus"
APP_PORT = 0
"""Stands for the application's port."""


@dataclass(frozen=True, slots=True)
class Flow:
    """``source`` opens connections to ``target`` at ``port``, for ``why``."""

    source: str
    target: str
    port: int
    why: str


FLOWS = (
    Flow(CLIENTS, FRONT, FRONT_PORT, "requests"),
    Flow(FRONT, CONTROL, GRPC_PORT, "configuration by xDS, reports"),
    Flow(FRONT, MEMBER, APP_PORT, "requests"),
    Flow(FRONT, MEMBER, HEALTH_PORT, "health checks"),
    Flow(MEMBER, CONTROL, GRPC_PORT, "heartbeats, traces"),
    Flow(MEMBER, MEMBER, PEER_PORT, "copies of sessions, forwarded calls, probes, handovers"),
    Flow(MEMBER, MEMBER, HEALTH_PORT, "pulses"),
    Flow(MEMBER, ETCD, ETCD_PORT, "saved sessions, ownership"),
    Flow(CONTROL, MEMBER, PEER_PORT, "probes, takeovers"),
    Flow(CONTROL, ETCD, ETCD_PORT, "tables, leader election"),
    Flow(SPEC, ETCD, ETCD_PORT, "the pool spec"),
    Flow(OPERATOR, ETCD, ETCD_PORT, "commands"),
    Flow(OPERATOR, CONTROL, HTTP_PORT, "commands: status, traces, review"),
    Flow(OPERATOR, MEMBER, PEER_PORT, "commands: verify, status --sync"),
    Flow(MIRROR, ETCD, ETCD_PORT, "copies of sessions, the home record"),
    Flow(ETCD, ETCD, ETCD_PEER_PORT, "consensus"),
    Flow(API_SERVER, INJECTOR, INJECTOR_PORT, "admission of pods"),
    Flow(PROMETHEUS, CONTROL, HTTP_PORT, "metrics"),
    Flow(PROMETHEUS, FRONT, FRONT_STATUS_PORT, "metrics"),
    Flow(PROMETHEUS, MEMBER, METRICS_PORT, "metrics"),
    Flow(PROMETHEUS, INJECTOR, INJECTOR_METRICS_PORT, "metrics"),
    Flow(PROMETHEUS, MIRROR, MIRROR_METRICS_PORT, "metrics"),
)
