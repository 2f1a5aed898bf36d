"""The command ``render kubernetes``: options in, a tree of manifests out."""

import json
from pathlib import Path

import click

from understudy.deploy.common.options import examples, spec_file_option


@click.command(
    epilog=examples(
        "understudy render kubernetes -f pool.yaml --out manifests --registry registry.example/shop",
        "kubectl apply -k manifests/overlays/trial",
        "understudy render kubernetes -f pool.yaml --out manifests --etcd https://etcd.data.svc:2379 \\",
        "    --etcd-tls-secret etcd-client --registry registry.example/shop --version 0.1.0",
    )
)
@spec_file_option()
@click.option(
    "--out", default="manifests", show_default=True, type=click.Path(path_type=Path, file_okay=False), help="Where to."
)
@click.option("--namespace", default="understudy", show_default=True, help="Understudy's own namespace.")
@click.option("--app-namespace", default="", help="The application's namespace. Default: the pool's name.")
@click.option("--app-port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Where it serves.")
@click.option("--registry", required=True, help="Where you pushed the images that deploy/images builds.")
@click.option("--version", default="", help="Their tag. Default: this version.")
@click.option(
    "--image",
    multiple=True,
    metavar="PART=REFERENCE",
    help="Another image for control, sidecar, injector, envoy or etcd, such as envoy=...@sha256:...; repeatable.",
)
@click.option("--etcd", default="trial", show_default=True, help="'trial' for an own one, or endpoints: URL,...")
@click.option("--etcd-tls-secret", default="", help="Secret with ca.crt; without a login also tls.crt and tls.key.")
@click.option("--etcd-login-secret", default="", help="Secret with username and password for etcd.")
@click.option(
    "--certificates",
    default="none",
    show_default=True,
    help="mTLS between all parts: csi:ISSUER[:KIND[:GROUP]], an issuer of cert-manager for its CSI driver.",
)
@click.option("--replicas", default=3, show_default=True, type=click.IntRange(1, 9), help="Control servers.")
@click.option("--front-replicas", default=2, show_default=True, type=click.IntRange(1, 100), help="Front Envoys.")
@click.option(
    "--front-service",
    default="ClusterIP",
    show_default=True,
    type=click.Choice(["ClusterIP", "NodePort", "LoadBalancer"]),
    help="How clients reach the front Envoys.",
)
@click.option(
    "--front-drain",
    default="admin",
    show_default=True,
    type=click.Choice(["admin", "sleep"]),
    help="How front Envoys end: 'admin' tells clients first, by the image's bash; 'sleep' needs Kubernetes 1.30.",
)
@click.option("--monitoring-namespace", default="monitoring", show_default=True, help="Where Prometheus is.")
@click.option("--cluster-domain", default="cluster.local", show_default=True, help="The cluster's DNS domain.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="For people or programs.")
def kubernetes(
    spec_file: Path,
    out: Path,
    namespace: str,
    app_namespace: str,
    app_port: int,
    registry: str,
    version: str,
    image: tuple[str, ...],
    etcd: str,
    etcd_tls_secret: str,
    etcd_login_secret: str,
    certificates: str,
    replicas: int,
    front_replicas: int,
    front_service: str,
    front_drain: str,
    monitoring_namespace: str,
    cluster_domain: str,
    output: str,
) -> None:
    """Write manifests for one pool: a kustomize base, components and overlays.

    'overlays/trial' has everything in it, an etcd too; 'overlays/production' is written when --etcd names yours.
    Nothing is applied: 'kubectl apply -k DIR/overlays/NAME' does that.
    """
    from understudy.deploy.kubernetes.render.kustomize import files, write
    from understudy.deploy.kubernetes.render.plan import Plan, choose_images, parse_certificates, parse_etcd
    from understudy.statesync.pool.spec_reader import load_spec
    from understudy.telemetry.tracing.setup import service_version

    plan = Plan(
        spec=load_spec(spec_file),
        images=choose_images(registry, version or service_version(), image),
        namespace=namespace,
        app_namespace=app_namespace,
        app_port=app_port,
        replicas=replicas,
        front_replicas=front_replicas,
        front_service=front_service,
        front_drain=front_drain,
        monitoring_namespace=monitoring_namespace,
        cluster_domain=cluster_domain,
        etcd=parse_etcd(etcd, etcd_tls_secret, etcd_login_secret),
        certificates=parse_certificates(certificates),
    )
    content = files(plan)
    write(content, out)
    overlays = sorted({str(out / Path(name).parent) for name in content if name.startswith("overlays/")})
    if output == "json":
        click.echo(json.dumps({"directory": str(out), "files": sorted(content), "overlays": overlays}, indent=2))
        return
    click.echo(f"pool {plan.pool}: {len(content)} files in {out}")
    for overlay in overlays:
        click.echo(f"  kubectl apply -k {overlay}")
