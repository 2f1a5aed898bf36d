"""Reads texts of any supported kind and makes pools of what they say. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from understudy.deploy.importing import envoy_gateway, gateway_api, ingress_nginx, istio
from understudy.deploy.importing.findings import Finding, ImportFault, Reading
from understudy.deploy.importing.haproxy import read_haproxy
from understudy.deploy.importing.haproxy_config import looks_like_haproxy
from understudy.deploy.importing.kube_objects import KubeObject, read_objects
from understudy.deploy.importing.pools import Imported, make_pools

Format = Literal["auto", "kubernetes", "haproxy"]


def import_texts(texts: Iterable[tuple[str, str]], kind: Format = "auto") -> Imported:
    """The pools and notes of all ``texts``, each with the name of its file.

    Objects of Kubernetes may refer to each other across files.

    Raises:
        ImportFault: some text cannot be read; one line per text that is at fault.
    """
    objects: list[KubeObject] = []
    readings: list[Reading] = []
    faults: list[str] = []
    for file, text in texts:
        try:
            if kind == "haproxy" or (kind == "auto" and looks_like_haproxy(text)):
                readings.append(read_haproxy(text, file))
            else:
                objects += read_objects(text, file)
        except ImportFault as fault:
            faults.append(str(fault))
    if not faults:
        readings.append(_read(objects, faults))
    if faults:
        raise ImportFault("\n".join(faults))
    return make_pools(readings)


def _read(objects: Sequence[KubeObject], faults: list[str]) -> Reading:
    findings: list[Finding] = []
    unrelated: Counter[str] = Counter()
    for one in objects:
        try:
            found = _findings(one, objects)
        except ImportFault as fault:
            faults.append(str(fault))
            continue
        findings += found
        unrelated[one.kind] += not found
    return Reading(tuple(findings), {kind: count for kind, count in unrelated.items() if count})


def _findings(one: KubeObject, objects: Sequence[KubeObject]) -> list[Finding]:
    if ingress_nginx.is_ingress(one):
        return ingress_nginx.read_ingress(one)
    if gateway_api.is_route(one):
        return gateway_api.read_route(one)
    if gateway_api.is_policy(one):
        return gateway_api.read_policy(one)
    if envoy_gateway.is_policy(one):
        return envoy_gateway.read_policy(one, objects)
    if istio.is_rule(one):
        return istio.read_rule(one, objects)
    return istio.read_service(one) if istio.is_service(one) else []
