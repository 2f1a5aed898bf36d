"""The Helm chart in deploy/chart, made from what ``understudy render kubernetes --shared`` renders. Pure, except main.

Objects are rendered with placeholders, which become expressions of the template. What depends on a setting is rendered
both ways, and the parts that differ stand under a condition. So the chart and the renderer cannot differ; a test
compares their results. ``make chart`` writes the files; ``values.yaml``, ``_helpers.tpl`` and ``NOTES.txt`` are written
by hand.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from understudy.deploy.kubernetes.base.csi_certificates import POD
from understudy.deploy.kubernetes.base.emit import Body, Manifest, document
from understudy.deploy.kubernetes.base.injection_settings import PeerCertificates
from understudy.deploy.kubernetes.base.names import CONTROL, FRONT, INJECTOR, MIRROR, OPERATOR, mirror_name
from understudy.deploy.kubernetes.chart.schema import values_schema
from understudy.deploy.kubernetes.chart.templates import Raws, block, for_each, substituted, template
from understudy.deploy.kubernetes.chart.variants import Variant, again, merge, variants
from understudy.deploy.kubernetes.preflight.load_manifests import merged
from understudy.deploy.kubernetes.render import pool as pool_part
from understudy.deploy.kubernetes.render.application import example_manifests
from understudy.deploy.kubernetes.render.autoscaling import autoscaling_manifests
from understudy.deploy.kubernetes.render.control import control_manifests
from understudy.deploy.kubernetes.render.etcd import config, trial_manifests
from understudy.deploy.kubernetes.render.front import bootstrap_name, front_manifests
from understudy.deploy.kubernetes.render.injector import injector_manifests
from understudy.deploy.kubernetes.render.mirror import mirror_manifests
from understudy.deploy.kubernetes.render.monitoring import monitoring_manifests, observability
from understudy.deploy.kubernetes.render.namespaces import application_namespace
from understudy.deploy.kubernetes.render.operator import operator_manifests
from understudy.deploy.kubernetes.render.plan import HPA, KEDA, Autoscale, Etcd, Images, Mirror, Plan, Pool
from understudy.deploy.kubernetes.render.policies import (
    etcd_clients,
    member_policies,
    namespace_policies,
    trial_etcd_egress,
    trial_etcd_policies,
)
from understudy.deploy.kubernetes.render.production import production
from understudy.statesync.pool.spec import PoolSpec

POOL, APP_NAMESPACE, APP_PORT = "xpoolx", "xappnsx", 61001
_FRONT_PORT = 61000
_MENTIONS = (POOL, APP_NAMESPACE, str(APP_PORT))
_POOLS, _END = "{{- range $pool := $.Values.pools }}", "{{- end }}"
_HEADER = "{{- /* Made by 'make chart' from the renderer of 'understudy render kubernetes'. Do not edit. */}}\n"
VALUES: dict[Any, str] = {
    POOL: "$pool.spec.pool",
    APP_NAMESPACE: "($pool.namespace | default $pool.spec.pool)",
    APP_PORT: "($pool.appPort | default 8080)",
    "xnsx": "$.Release.Namespace",
    "xmonx": "$.Values.monitoring.namespace",
    "xdomainx": "$.Values.clusterDomain",
    "xcontrolx:1": 'include "understudy.image" (list $ "control")',
    "xsidecarx:1": 'include "understudy.image" (list $ "sidecar")',
    "xinjectorx:1": 'include "understudy.image" (list $ "injector")',
    "xenvoyx:1": "$.Values.images.envoy",
    "xetcdx:1": "$.Values.images.etcd",
    "xtlsx": "$.Values.etcd.tlsSecret",
    "xloginx": "$.Values.etcd.loginSecret",
    "xrightsx": "$.Values.control.rightsSecret",
    "xissuerx": "$.Values.certificates.issuer",
    "xkindx": "$.Values.certificates.kind",
    "xgroupx": "$.Values.certificates.group",
    "xmirrorsitex": "$.Values.mirror.site",
    "xmirrorpeerx": "$.Values.mirror.peer",
    "xpeertlsx": "$.Values.mirror.peerTlsSecret",
    "xservicex": "$.Values.front.service.type",
    "http://xendpointx:2379": 'include "understudy.endpoints" $',
    61002: "$.Values.control.replicas",
    61003: "$.Values.front.replicas",
    61004: "$.Values.example.members",
    61005: "max 2 (int ($pool.spec.copies | default 3))",
    61006: "$.Values.autoscaling.max",
    "xworkloadkindx": '(($pool.workload | default dict).kind | default "StatefulSet")',
    "xworkloadx": "(($pool.workload | default dict).name | default $pool.spec.pool)",
    "http://xprometheusx": 'include "understudy.prometheus" $',
}
"""What each placeholder stands for."""
_CONDITIONS = {
    "certificates": "$.Values.certificates.issuer",
    "trial": "$.Values.etcd.trial",
    "tls": "$.Values.etcd.tlsSecret",
    "login": "$.Values.etcd.loginSecret",
    "rights": "$.Values.control.rightsSecret",
    "peertls": "$.Values.mirror.peerTlsSecret",
    "sleep": 'eq $.Values.front.drain "sleep"',
    "tcp": 'eq (default "http" $pool.spec.protocol) "tcp"',
}
_SETTINGS = {CONTROL: "control", FRONT: "front", INJECTOR: "injector", OPERATOR: "operator", MIRROR: "mirror"}
"""The values with the settings of a component's pods."""


def plan_for(facts: dict[str, bool]) -> Plan:
    """A plan whose texts are placeholders, under these facts."""
    protocol: dict[str, Any] = {"protocol": "tcp"} if facts.get("tcp") else {}
    spec = PoolSpec.model_validate({"pool": POOL, "front": {"port": _FRONT_PORT}, **protocol})
    issuer = PeerCertificates(issuer="xissuerx", issuer_kind="xkindx", issuer_group="xgroupx")
    etcd = Etcd(
        ("http://xendpointx:2379",),
        tls_secret="xtlsx" if facts.get("tls") else "",
        login_secret="xloginx" if facts.get("login") else "",
    )
    return Plan(
        pools=(Pool(spec, APP_NAMESPACE, APP_PORT),),
        images=Images("xcontrolx:1", "xsidecarx:1", "xinjectorx:1", "xenvoyx:1", "xetcdx:1"),
        shared=True,
        namespace="xnsx",
        replicas=61002,
        front_replicas=61003,
        front_service="xservicex",
        front_drain="sleep" if facts.get("sleep") else "admin",
        rights_secret="xrightsx" if facts.get("rights") else "",
        monitoring_namespace="xmonx",
        cluster_domain="xdomainx",
        etcd=None if facts.get("trial") else etcd,
        certificates=issuer if facts.get("certificates") else None,
        example_members=61004,
        mirror=Mirror(
            "xmirrorsitex",
            "xmirrorpeerx",
            Etcd(("http://xpeerx:2379",), tls_secret="xpeertlsx" if facts.get("peertls") else ""),
        ),
    )


Make = Callable[[Plan], Sequence[Manifest]]


class _Writer:
    """Collects the templates; all share one set of marks."""

    def __init__(self) -> None:
        self.raws = Raws()

    def file(self, *parts: str) -> str:
        """A template file."""
        return _HEADER + "".join(parts)

    def documents(self, make: Make, facts: Sequence[str] = (), *, each: bool = False) -> str:
        """The documents that ``make`` makes, merged over all combinations of ``facts``; ``each``: for each pool."""
        made = variants(facts, lambda values: _patched(plan_for(values), make))
        count = {len(one.tree) for one in made}
        if len(count) != 1:
            raise ValueError("variants must have the same documents")
        return "".join(
            self._document(made[0].tree[number], [Variant(one.facts, one.tree[number].body) for one in made], each=each)
            for number in range(count.pop())
        )

    def _document(self, first: Manifest, every: Sequence[Variant], *, each: bool) -> str:
        body = merge(every, _CONDITIONS, self.raws.guard)
        body = self._particular(body, str(body["kind"]))
        if not each:
            body = for_each(body, _MENTIONS, self.raws.mark(_POOLS), self.raws.mark(_END))
        about = str(substituted(first.about, VALUES, self.raws))
        made = Manifest(substituted(body, VALUES, self.raws), about=about)
        text = "---\n" + template(replace(made, notes=_fitting(made, first)), self.raws)
        if made.kind == "PodDisruptionBudget":
            return f"{{{{- if $.Values.podDisruptionBudgets }}}}\n{text}{_END}\n"
        return text

    def _particular(self, body: Body, kind: str) -> Body:
        """What the chart has beyond the renderer: settings of pods, labels, parts that are computed from all specs."""
        raws = self.raws
        part = _SETTINGS.get(str(body["metadata"].get("labels", {}).get("app.kubernetes.io/component")))
        name = str(body["metadata"]["name"])
        metadata = {**body["metadata"], "labels": _also(body["metadata"].get("labels", {}), raws, _CHART_LABELS)}
        body = {**body, "metadata": metadata}
        body = _names(body, raws)
        template_of = body.get("spec", {}).get("template")
        if template_of:
            own = _pod(template_of, f"$.Values.{part}" if part else "", raws)
            body = {**body, "spec": {**body["spec"], "template": own}}
        if (kind, part) == ("Service", "front"):
            ports = raws.mark('{{- include "understudy.frontServicePorts" $ | nindent INDENT }}')
            local = raws.mark('{{- include "understudy.frontTrafficPolicy" $ | nindent INDENT }}')
            spec = {key: value for key, value in body["spec"].items() if key != "externalTrafficPolicy"}
            annotations = raws.mark(_with("$.Values.front.service.annotations", "annotations"))
            metadata = {**body["metadata"], annotations: None}
            body = {**body, "metadata": metadata, "spec": {**spec, local: None, "ports": ports}}
        if (kind, name) == ("NetworkPolicy", "front"):
            open_ports = raws.mark('{{- include "understudy.frontPolicyPorts" $ | nindent INDENT }}')
            ingress = [{**body["spec"]["ingress"][0], "ports": open_ports}]
            body = {**body, "spec": {**body["spec"], "ingress": ingress}}
        if kind in _MONITORS:
            metadata = body["metadata"]
            body = {**body, "metadata": {**metadata, "labels": _also(metadata["labels"], raws, _MONITOR_LABELS)}}
        if kind == "PrometheusRule":
            body = {**body, "spec": raws.mark('{{- include "understudy.rules" $ | nindent INDENT }}')}
        if kind == "ConfigMap" and name == "understudy-dashboard":
            text = '|{{- $.Files.Get "files/dashboard.json" | nindent INDENT }}'
            body = {**body, "data": {key: raws.mark(text) for key in body["data"]}}
        if (kind, name) == ("NetworkPolicy", "etcd-clients"):
            egress = raws.mark('{{- include "understudy.etcdEgress" $ | nindent INDENT }}')
            body = {**body, "spec": {**body["spec"], "egress": egress}}
        if (kind, name) == ("NetworkPolicy", "mirror-peer"):
            egress = raws.mark('{{- include "understudy.ownEgress" $.Values.mirror.peerEndpoints | nindent INDENT }}')
            body = {**body, "spec": {**body["spec"], "egress": egress}}
        return body


_CHART_LABELS = '{{- include "understudy.chartLabels" $ | nindent INDENT }}'
_MONITORS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
_MONITOR_LABELS = "{{- with $.Values.monitoring.labels }}{{- toYaml . | nindent INDENT }}{{- end }}"
_COMMON_LABELS = "{{- with $.Values.commonLabels }}{{- toYaml . | nindent INDENT }}{{- end }}"


def _with(value: str, key: str) -> str:
    """The template text of a key that is there only if its value is."""
    return f'{{{{- with {value} }}}}{{{{- dict "{key}" . | toYaml | nindent INDENT }}}}{{{{- end }}}}'


def _also(found: Body, raws: Raws, text: str) -> Body:
    return {**found, again(raws.mark(text), found): None}


def _pod(template_of: Body, settings: str, raws: Raws) -> Body:
    """A workload's pods with the settings of the values."""
    metadata = {**template_of["metadata"], "labels": _also(template_of["metadata"]["labels"], raws, _COMMON_LABELS)}
    metadata = _also(metadata, raws, _with("$.Values.podAnnotations", "annotations"))
    spec = _also(template_of["spec"], raws, _with("$.Values.imagePullSecrets", "imagePullSecrets"))
    if settings:
        for key in ("nodeSelector", "tolerations", "priorityClassName"):
            spec = _also(spec, raws, _with(f"{settings}.{key}", key))
        (container,) = spec["containers"]
        container = {**container, "resources": raws.mark(block(f"{settings}.resources"))}
        if settings.endswith("front"):
            spec, container = _front_pod(spec, container, raws)
        spec = {**spec, "containers": [container]}
    return {**template_of, "metadata": metadata, "spec": spec}


def _front_pod(spec: Body, container: Body, raws: Raws) -> tuple[Body, Body]:
    """The front Envoys' ports, certificates for clients, and the setting for ports below 1024."""
    lines = {part: raws.mark(f'{{{{- include "understudy.{part}" $ | nindent INDENT }}}}') for part in _FRONT_PARTS}
    ports = [lines["frontContainerPorts"], *(one for one in container["ports"] if one["name"] == "status")]
    container = {
        **container,
        "ports": ports,
        "volumeMounts": [*container["volumeMounts"], lines["frontTlsMounts"]],
    }
    security = {**spec["securityContext"], lines["frontSysctls"]: None}
    return {**spec, "securityContext": security, "volumes": [*spec["volumes"], lines["frontTlsVolumes"]]}, container


_FRONT_PARTS = ("frontContainerPorts", "frontTlsMounts", "frontTlsVolumes", "frontSysctls")


@functools.cache
def _computed() -> dict[str, str]:
    """Texts that the template computes: the name with a digest, and ids of several pools."""
    bootstraps = {bootstrap_name(plan_for(facts)) for facts in ({}, {"certificates": True})}
    return {
        **dict.fromkeys(bootstraps, 'include "understudy.bootstrapName" $'),
        **{
            f"spiffe://understudy/{POOL}/{kind}/{POD}": f'include "understudy.ids" (list $ "{kind}")'
            for kind in (CONTROL, OPERATOR)
        },
    }


def _names(tree: Any, raws: Raws) -> Any:  # noqa: ANN401 - a tree
    """A tree in which names with digests, and ids of several pools, are computed by the template."""
    if isinstance(tree, dict):
        return {key: _names(one, raws) for key, one in tree.items()}
    if isinstance(tree, list):
        return [_names(one, raws) for one in tree]
    if not isinstance(tree, str):
        return tree
    if tree in _computed():
        return raws.mark(f"{{{{ {_computed()[tree]} | quote }}}}")
    if tree.startswith(f"spec-{POOL}-"):
        return raws.mark('{{ include "understudy.specName" (list $ $pool) | quote }}')
    if tree.startswith("endpoints: ["):
        return raws.mark('|{{- include "understudy.peerFile" $ | nindent INDENT }}')
    if tree.startswith(f"pool: {POOL}\n"):
        return raws.mark("|{{- toYaml $pool.spec | nindent INDENT }}")
    return tree


def _patched(plan: Plan, make: Make) -> list[Manifest]:
    """Manifests with the patches of the production overlay, if they are not for the trial."""
    found = list(make(plan))
    if plan.etcd is None:
        return found
    changes = [one.body for patches in production(plan, plan.etcd).patches.values() for one in patches]
    return [_changed(one, changes) for one in found]


def _changed(manifest: Manifest, changes: Sequence[Body]) -> Manifest:
    body = manifest.body
    for change in changes:
        if (change["kind"], change["metadata"]["name"]) == (body["kind"], manifest.name):
            body = merged(body, change)
    return replace(manifest, body=body)


def _fitting(made: Manifest, first: Manifest) -> dict[str, str]:
    """The comments of fields that are in the template as well; entries of lists may have moved."""
    found = {}
    for where, text in first.notes.items():
        if where.rpartition(".")[2].isdigit():
            continue
        try:
            document(replace(made, about="", notes={where: text}))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError):
            continue
        found[where] = text
    return found


def _job(plan: Plan) -> list[Manifest]:
    return pool_part.pool_manifests(plan, plan.pools[0])


def templates() -> dict[str, str]:
    """The template files by name."""
    writer = _Writer()

    def etcd(plan: Plan) -> list[Manifest]:
        return [etcd_clients(plan, trial_etcd_egress(plan))]

    access = ("tls", "login")
    secured = ("certificates", "trial", *access)
    return {
        "policies.yaml": writer.file(writer.documents(namespace_policies), writer.documents(etcd)),
        "pools.yaml": writer.file(
            f"{_POOLS}\n",
            writer.documents(_job, access, each=True),
            writer.documents(member_policies, each=True),
            f"{_END}\n",
            '{{- range $namespace := include "understudy.newNamespaces" $ | fromJsonArray }}\n',
            writer.documents(lambda _: [application_namespace(APP_NAMESPACE)], each=True).replace(
                VALUES[APP_NAMESPACE], "$namespace"
            ),
            f"{_END}\n",
        ),
        "control.yaml": writer.file(writer.documents(control_manifests, (*secured, "rights"))),
        "front.yaml": writer.file(writer.documents(front_manifests, ("certificates", "sleep"))),
        "operator.yaml": writer.file(writer.documents(operator_manifests, ("certificates", *access, "rights"))),
        "mirror.yaml": writer.file(
            "{{- if $.Values.mirror.site }}\n",
            writer.documents(_peer),
            f"{_POOLS}\n",
            writer.documents(_mirror, ("peertls", *access), each=True),
            f"{_END}\n{_END}\n",
        ),
        "injector.yaml": writer.file(
            "{{- if $.Values.injector.enabled }}\n",
            writer.documents(injector_manifests, ("certificates", *access)),
            f"{_END}\n",
        ),
        "etcd.yaml": writer.file(
            "{{- if not $.Values.etcd.trial }}\n",
            writer.documents(lambda plan: [config(plan, ("http://xendpointx:2379",))]),
            "{{- else }}\n",
            writer.documents(trial_manifests),
            writer.documents(trial_etcd_policies),
            f"{_END}\n",
        ),
        "autoscaling.yaml": writer.file(
            "{{- if $.Values.autoscaling.enabled }}\n",
            f"{_POOLS}\n",
            '{{- if eq $.Values.autoscaling.form "keda" }}\n',
            writer.documents(_autoscaler(KEDA), each=True),
            "{{- else }}\n",
            writer.documents(_autoscaler(HPA), each=True),
            f"{_END}\n{_END}\n{_END}\n",
        ),
        "monitoring.yaml": writer.file(
            "{{- if $.Values.monitoring.enabled }}\n",
            writer.documents(_monitors, ("rights",)),
            f"{_POOLS}\n",
            writer.documents(_member_monitors, each=True),
            "{{- if $.Values.mirror.site }}\n",
            writer.documents(_mirror_monitors, each=True),
            f"{_END}\n",
            f"{_END}\n",
            f"{_END}\n",
        ),
        "example.yaml": writer.file(
            "{{- if $.Values.example.enabled }}\n",
            f"{_POOLS}\n",
            writer.documents(lambda plan: example_manifests(plan, plan.pools[0]), ("tcp",), each=True),
            f"{_END}\n",
            f"{_END}\n",
        ),
    }


def _autoscaler(form: str) -> Make:
    """The autoscaler of the one pool of a plan."""

    def make(plan: Plan) -> list[Manifest]:
        (pool,) = plan.pools
        placed = replace(pool, spec=pool.spec.model_copy(update={"copies": 61005}), target="xworkloadkindx/xworkloadx")
        return autoscaling_manifests(replace(plan, pools=(placed,)), Autoscale(form, 61006, "http://xprometheusx"))

    return make


def _monitors(plan: Plan) -> list[Manifest]:
    return [one for one in monitoring_manifests(plan) if POOL not in one.name]


def _member_monitors(plan: Plan) -> list[Manifest]:
    return [one for one in monitoring_manifests(replace(plan, mirror=None)) if POOL in one.name]


def _mirror_monitors(plan: Plan) -> list[Manifest]:
    return [one for one in monitoring_manifests(plan) if one.name.startswith(mirror_name(POOL))]


def _peer(plan: Plan) -> list[Manifest]:
    return [one for one in _mirror_parts(plan) if POOL not in one.name]


def _mirror(plan: Plan) -> list[Manifest]:
    return [one for one in _mirror_parts(plan) if POOL in one.name]


def _mirror_parts(plan: Plan) -> list[Manifest]:
    return mirror_manifests(plan, plan.mirror) if plan.mirror else []


def chart_files() -> dict[str, str]:
    """The generated files of the chart: path -> content."""
    return {
        **{f"templates/{name}": text for name, text in templates().items()},
        "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
        "files/rules.yaml": observability("rules.yaml"),
        "files/dashboard.json": observability("dashboard.json"),
    }


def main() -> None:
    """Write the generated files into deploy/chart of this checkout."""
    chart = Path(__file__).parents[2] / "chart"
    for name, text in chart_files().items():
        (chart / name).parent.mkdir(parents=True, exist_ok=True)
        (chart / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
