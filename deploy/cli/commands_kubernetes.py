"""The command ``render kubernetes``: writes a tree of manifests."""

import json
from pathlib import Path

import click

from understudy.deploy.common.options import examples, report_output_option, shown_option, spec_file_option


@click.command(
    epilog=examples(
        "understudy render kubernetes -f pool.yaml --out manifests --registry registry.example/shop",
        "kubectl apply -k manifests/overlays/trial",
        "understudy render kubernetes -f pool.yaml --out manifests --etcd https://etcd.data.svc:2379 \\",
        "    --etcd-tls-secret etcd-client --registry registry.example/shop --version 0.1.0",
    )
)
@spec_file_option()
@shown_option(
    "--out", default="manifests", type=click.Path(path_type=Path, file_okay=False), help="Directory to write to."
)
@shown_option("--namespace", default="understudy", help="Namespace of Understudy.")
@click.option("--app-namespace", default="", help="Namespace of the application. Default: the pool's name.")
@shown_option("--app-port", default=8080, type=click.IntRange(1, 65535), help="Port of the application in its pods.")
@click.option("--registry", required=True, help="Registry with the images that deploy/images builds.")
@click.option("--version", default="", help="Tag of these images. Default: the version of this program.")
@click.option(
    "--image",
    multiple=True,
    metavar="PART=REFERENCE",
    help="Image of control, sidecar, injector, envoy or etcd, as in envoy=...@sha256:...; repeatable. Default: none.",
)
@shown_option("--etcd", default="trial", help="'trial' to deploy one, or the URLs of yours: URL,...")
@click.option(
    "--etcd-tls-secret",
    default="",
    help="Secret with ca.crt for etcd, and without --etcd-login-secret also tls.crt and tls.key. Default: no TLS.",
)
@click.option("--etcd-login-secret", default="", help="Secret with username and password for etcd. Default: none.")
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
@shown_option("--monitoring-namespace", default="monitoring", help="Namespace of Prometheus.")
@shown_option("--cluster-domain", default="cluster.local", help="DNS domain of the cluster.")
@report_output_option
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

    'overlays/trial' contains everything, including an etcd. 'overlays/production' is written if --etcd has URLs.
    The command applies nothing; use 'kubectl apply -k DIR/overlays/NAME'.
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
