"""The command ``render kubernetes``: writes a tree of manifests."""

import json
from pathlib import Path

import click

from understudy.deploy.common.options import examples, report_output_option, shown_option


@click.command(
    epilog=examples(
        "understudy render kubernetes -f pool.yaml --out manifests --registry registry.example/shop",
        "kubectl apply -k manifests/overlays/trial",
        "understudy render kubernetes -f pool.yaml --out manifests --etcd https://etcd.data.svc:2379 \\",
        "    --etcd-tls-secret etcd-client --registry registry.example/shop --version 0.1.0",
        "understudy render kubernetes -f pool.yaml --registry registry.example/shop --etcd etcd.data.svc:2379 \\",
        "    --mirror-site east --mirror-peer west=https://etcd.west.example:2379 --mirror-peer-tls-secret west",
        "understudy render kubernetes -f pool.yaml --registry registry.example/shop --etcd-sites east,west,north",
        "understudy render kubernetes -f cart.yaml -f desk.yaml --registry registry.example/shop \\",
        "    --app-namespace desk=support --app-port desk=9000 --autoscale keda",
    )
)
@click.option(
    "-f",
    "--file",
    "spec_files",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pool spec (YAML file); repeatable for several pools.",
)
@click.option(
    "--shared",
    is_flag=True,
    help="Serve all pools in etcd, also those that are applied later. Always so with several files.",
)
@shown_option(
    "--out", default="manifests", type=click.Path(path_type=Path, file_okay=False), help="Directory to write to."
)
@shown_option("--namespace", default="understudy", help="Namespace of Understudy.")
@click.option(
    "--app-namespace",
    multiple=True,
    metavar="[POOL=]NAME",
    help="Namespace of the application, of one pool or of all; repeatable. Default: the pool's name.",
)
@click.option(
    "--app-port",
    multiple=True,
    metavar="[POOL=]PORT",
    help="Port of the application in its pods, of one pool or of all; repeatable. Default: 8080.",
)
@click.option("--registry", required=True, help="Registry with the images that deploy/images builds.")
@click.option("--version", default="", help="Tag of these images. Default: the version of this program.")
@click.option(
    "--image",
    multiple=True,
    metavar="PART=REFERENCE",
    help="Image of control, sidecar, injector, envoy, etcd or take-over, as in envoy=...@sha256:...; repeatable. "
    "Default: none.",
)
@shown_option("--etcd", default="trial", help="'trial' to deploy one, or the URLs of yours: URL,...")
@click.option(
    "--etcd-tls-secret",
    default="",
    help="Secret with ca.crt for etcd, and without --etcd-login-secret also tls.crt and tls.key. Default: no TLS.",
)
@click.option("--etcd-login-secret", default="", help="Secret with username and password for etcd. Default: none.")
@click.option(
    "--etcd-sites",
    default="",
    metavar="ZONE,ZONE[,WITNESS]",
    help="Zones of the trial's etcd. Three: one member in each, and everything else in the first two only. Two: "
    "two members in the first and one in the other, and Jobs for 'site take-over'. Default: members anywhere.",
)
@shown_option(
    "--certificates",
    default="none",
    help="mTLS between all parts: csi:ISSUER[:KIND[:GROUP]], an issuer for the CSI driver of cert-manager; or none.",
)
@shown_option("--replicas", default=3, type=click.IntRange(1, 9), help="Number of control servers.")
@shown_option("--front-replicas", default=2, type=click.IntRange(1, 100), help="Number of front Envoys.")
@shown_option(
    "--front-service",
    default="ClusterIP",
    type=click.Choice(["ClusterIP", "NodePort", "LoadBalancer"]),
    help="Type of the Service of the front Envoys.",
)
@shown_option(
    "--front-drain",
    default="admin",
    type=click.Choice(["admin", "sleep"]),
    help="How a front Envoy stops: 'admin' asks clients to leave first (needs bash in the image), 'sleep' needs "
    "Kubernetes 1.30.",
)
@click.option(
    "--front-tls-secret",
    "front_tls_secrets",
    multiple=True,
    help="Secret (tls.crt, tls.key) that front Envoys mount at /etc/understudy-front/SECRET, for front.tls of a spec; "
    "repeatable. Default: none.",
)
@click.option(
    "--rights-secret",
    default="",
    help="Secret with rights.yaml for the HTTP port of control servers, and the token with which they, the operator's "
    "pod and Prometheus read there. Default: none, whoever the network policies let in may read.",
)
@click.option(
    "--mirror-site",
    default="",
    help="Name of this site, if the pools have a mirror on a distant site, or are one. Default: no mirror.",
)
@click.option(
    "--mirror-peer",
    default="",
    metavar="SITE=URL,...",
    help="The other site, and the URLs of its etcd. Default: none.",
)
@click.option(
    "--mirror-peer-tls-secret",
    default="",
    help="Secret with ca.crt, tls.crt and tls.key for etcd of the other site. Default: no TLS.",
)
@click.option(
    "--autoscale",
    type=click.Choice(["hpa", "keda"]),
    help="Write autoscalers of the members that follow understudy_wanted_members: HorizontalPodAutoscaler (needs an "
    "adapter for external metrics), or KEDA's ScaledObject. Default: none.",
)
@shown_option("--autoscale-max", default=10, type=click.IntRange(2, 1000), help="Most members of a pool.")
@click.option(
    "--autoscale-target",
    multiple=True,
    metavar="[POOL=]KIND/NAME",
    help="StatefulSet or Deployment of the members, of one pool or of all; repeatable. Default: StatefulSet/POOL.",
)
@click.option(
    "--prometheus",
    default="",
    help="URL of Prometheus, for KEDA. Default: the Prometheus operator's Service in --monitoring-namespace.",
)
@shown_option("--monitoring-namespace", default="monitoring", help="Namespace of Prometheus.")
@shown_option(
    "--runbook-base",
    default="docs/operations.md",
    help="Address of the page docs/operations.md where you serve it, for the runbook_url of alerts.",
)
@shown_option("--cluster-domain", default="cluster.local", help="DNS domain of the cluster.")
@report_output_option
def kubernetes(
    spec_files: tuple[Path, ...],
    shared: bool,
    out: Path,
    namespace: str,
    app_namespace: tuple[str, ...],
    app_port: tuple[str, ...],
    registry: str,
    version: str,
    image: tuple[str, ...],
    etcd: str,
    etcd_tls_secret: str,
    etcd_login_secret: str,
    etcd_sites: str,
    certificates: str,
    replicas: int,
    front_replicas: int,
    front_service: str,
    front_drain: str,
    front_tls_secrets: tuple[str, ...],
    rights_secret: str,
    mirror_site: str,
    mirror_peer: str,
    mirror_peer_tls_secret: str,
    autoscale: str | None,
    autoscale_max: int,
    autoscale_target: tuple[str, ...],
    prometheus: str,
    monitoring_namespace: str,
    runbook_base: str,
    cluster_domain: str,
    output: str,
) -> None:
    """Write manifests for one pool or several: a kustomize base, components and overlays.

    With several files, control servers and front Envoys serve all pools in etcd, at the ports, hosts and paths in the
    front of each spec (docs/many-pools.md). With one file they serve this pool alone.

    'overlays/trial' contains everything, including an etcd. 'overlays/production' is written if --etcd has URLs.
    The command applies nothing; use 'kubectl apply -k DIR/overlays/NAME'.
    """
    from understudy.deploy.kubernetes.render.kustomize import files, write
    from understudy.deploy.kubernetes.render.plan import (
        Autoscale,
        Plan,
        choose_images,
        make_pools,
        parse_certificates,
        parse_etcd,
        parse_etcd_sites,
        parse_mirror,
    )
    from understudy.statesync.pool.spec_reader import load_spec
    from understudy.telemetry.tracing.setup import service_version

    prometheus = prometheus or f"http://prometheus-operated.{monitoring_namespace}.svc:9090"
    own_etcd = parse_etcd(etcd, etcd_tls_secret, etcd_login_secret)
    plan = Plan(
        pools=make_pools([load_spec(file) for file in spec_files], app_namespace, app_port, autoscale_target),
        shared=shared or len(spec_files) > 1,
        images=choose_images(registry, version or service_version(), image),
        namespace=namespace,
        replicas=replicas,
        front_replicas=front_replicas,
        front_service=front_service,
        front_drain=front_drain,
        front_tls_secrets=front_tls_secrets,
        rights_secret=rights_secret,
        monitoring_namespace=monitoring_namespace,
        runbook_base=runbook_base,
        autoscale=Autoscale(autoscale, autoscale_max, prometheus) if autoscale else None,
        cluster_domain=cluster_domain,
        etcd=own_etcd,
        etcd_sites=parse_etcd_sites(etcd_sites, own_etcd),
        certificates=parse_certificates(certificates),
        mirror=parse_mirror(mirror_site, mirror_peer, mirror_peer_tls_secret),
    )
    content = files(plan)
    write(content, out)
    overlays = sorted({str(out / Path(name).parent) for name in content if name.startswith("overlays/")})
    if output == "json":
        click.echo(json.dumps({"directory": str(out), "files": sorted(content), "overlays": overlays}, indent=2))
        return
    names = ", ".join(pool.name for pool in plan.pools)
    click.echo(f"{'pools' if len(plan.pools) > 1 else 'pool'} {names}: {len(content)} files in {out}")
    for overlay in overlays:
        click.echo(f"  kubectl apply -k {overlay}")
