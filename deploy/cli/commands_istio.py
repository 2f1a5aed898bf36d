"""The command ``render istio``: writes two directories of resources."""

import json
from collections.abc import Mapping
from pathlib import Path

import click

from understudy.deploy.common.options import examples, report_output_option, shown_option, spec_file_option


@click.command(
    epilog=examples(
        "understudy render istio -f pool.yaml --istio-version 1.29 --out istio",
        "kubectl apply -k istio/1-prepare && kubectl -n istio-system rollout restart deployment istio-ingressgateway",
        "kubectl apply -k istio/2-route",
        "understudy render istio -f pool.yaml --istio-version 1.29 --port 443 --listener-port 8443 \\",
        "    --host cart.example.com --credential cart-certificate --out istio",
        "understudy render istio -f pool.yaml --istio-version 1.29 --mode client --proxy-namespace shop \\",
        "    --selector app=web --out istio-web",
    )
)
@spec_file_option("; its key 'mesh' names the Service")
@shown_option("--out", default="istio", type=click.Path(path_type=Path, file_okay=False), help="Directory to write to.")
@shown_option(
    "--mode",
    default="gateway",
    type=click.Choice(["gateway", "client"]),
    help="Proxies that route: those of a gateway, or the sidecars of client pods.",
)
@click.option("--istio-version", required=True, help="Oldest Istio version of these proxies, such as 1.29.2.")
@shown_option("--namespace", default="understudy", help="Namespace of the control servers.")
@click.option(
    "--proxy-namespace", default="", help="Namespace of the proxies' pods. Default for a gateway: istio-system."
)
@click.option(
    "--selector",
    "--gateway-selector",
    multiple=True,
    metavar="KEY=VALUE",
    help="Labels of the proxies' pods; repeatable. Default for a gateway: istio=ingressgateway.",
)
@shown_option(
    "--port", default=8080, type=click.IntRange(1, 65535), help="Port of the gateway; only this pool may use it."
)
@click.option(
    "--listener-port",
    default=0,
    type=click.IntRange(0, 65535),
    help="Port that the gateway's pods listen on (targetPort of its Service). Default: --port.",
)
@shown_option(
    "--host",
    default="*",
    help="With --credential: host name that clients ask for in TLS. Other hosts may share the port.",
)
@click.option(
    "--credential",
    default="",
    help="Secret with the certificate of --host, in the gateway's namespace. Default: plain text.",
)
@shown_option(
    "--app-port", default=8080, type=click.IntRange(1, 65535), help="Port of the application in the members' pods."
)
@shown_option(
    "--xds-tls",
    default="mesh",
    type=click.Choice(["mesh", "none"]),
    help="Connection to the control servers: mesh for Istio's mTLS (their pods are in the mesh), none for plain text.",
)
@shown_option("--trust-domain", default="cluster.local", help="Trust domain of the mesh.")
@shown_option("--cluster-domain", default="cluster.local", help="DNS domain of the cluster.")
@report_output_option
def istio(
    spec_file: Path,
    out: Path,
    mode: str,
    istio_version: str,
    namespace: str,
    proxy_namespace: str,
    selector: tuple[str, ...],
    port: int,
    listener_port: int,
    host: str,
    credential: str,
    app_port: int,
    xds_tls: str,
    trust_domain: str,
    cluster_domain: str,
    output: str,
) -> None:
    """Write resources that make the proxies of an Istio mesh route by slots, in two directories.

    The resources in the first directory prepare the mesh and change no routes. Those in the second turn on routing by
    slots; to turn it off, delete them. docs/istio.md describes each resource. The command applies nothing.
    """
    from understudy.deploy.kubernetes.istio.plan import (
        GATEWAY_LABELS,
        GATEWAY_NAMESPACE,
        MeshPlan,
        parse_selector,
        parse_version,
    )
    from understudy.deploy.kubernetes.istio.tree import PREPARE, ROUTE, files
    from understudy.deploy.kubernetes.render.kustomize import write
    from understudy.statesync.pool.spec_reader import load_spec

    gateway = mode == "gateway"
    plan = MeshPlan(
        spec=load_spec(spec_file),
        mode=mode,
        istio=parse_version(istio_version),
        namespace=namespace,
        proxy_namespace=proxy_namespace or (GATEWAY_NAMESPACE if gateway else ""),
        selector=parse_selector(selector) or (GATEWAY_LABELS if gateway else {}),
        port=port,
        listener_port=listener_port,
        host=host,
        credential=credential,
        app_port=app_port,
        xds_tls=xds_tls,
        trust_domain=trust_domain,
        cluster_domain=cluster_domain,
    )
    content = files(plan)
    write(content, out)
    steps = [str(out / PREPARE), str(out / ROUTE)]
    if output == "json":
        click.echo(json.dumps({"directory": str(out), "files": sorted(content), "steps": steps}, indent=2))
        return
    click.echo(f"pool {plan.pool}: {len(content)} files in {out}")
    click.echo(
        f"  kubectl apply -k {steps[0]}   # then restart the pods of {_labels(plan.selector)} in {plan.proxy_namespace}"
    )
    click.echo(f"  kubectl apply -k {steps[1]}     # when they are ready")


def _labels(selector: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in selector.items())
