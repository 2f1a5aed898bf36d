"""The command ``render istio``: options in, two directories of resources out."""

import json
from collections.abc import Mapping
from pathlib import Path

import click

from understudy.deploy.common.options import examples, spec_file_option


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
@spec_file_option("; its 'mesh' names the Service")
@click.option(
    "--out", default="istio", show_default=True, type=click.Path(path_type=Path, file_okay=False), help="Where to."
)
@click.option(
    "--mode",
    default="gateway",
    show_default=True,
    type=click.Choice(["gateway", "client"]),
    help="Whose proxies route: a gateway's, or the sidecars of pods that call the pool.",
)
@click.option("--istio-version", required=True, help="The oldest version of the proxies meant, such as 1.29.2.")
@click.option("--namespace", default="understudy", show_default=True, help="The control servers' namespace.")
@click.option(
    "--proxy-namespace", default="", help="The namespace of the proxies' pods. Default for a gateway: istio-system."
)
@click.option(
    "--selector",
    "--gateway-selector",
    multiple=True,
    metavar="KEY=VALUE",
    help="Labels of the proxies' pods; repeatable. Default for a gateway: istio=ingressgateway.",
)
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="The gateway's port, the pool's alone.",
)
@click.option(
    "--listener-port",
    default=0,
    type=click.IntRange(0, 65535),
    help="What the gateway's pods listen at for it (its Service's targetPort). Default: --port.",
)
@click.option(
    "--host", default="*", help="With --credential: the host name of clients' TLS; other hosts may share the port."
)
@click.option("--credential", default="", help="The Secret with the host's certificate, in the gateway's namespace.")
@click.option("--app-port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Where members serve.")
@click.option(
    "--xds-tls",
    default="mesh",
    show_default=True,
    type=click.Choice(["mesh", "none"]),
    help="How proxies reach the control servers: with Istio's mTLS (their pods are in the mesh), or in plain text.",
)
@click.option("--trust-domain", default="cluster.local", show_default=True, help="The mesh's trust domain.")
@click.option("--cluster-domain", default="cluster.local", show_default=True, help="The cluster's DNS domain.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="For people or programs.")
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
    """Write what lets the proxies of an Istio mesh route by slots: resources in two directories.

    The first prepares the mesh and changes no request's way; the second switches routing by slots on, and deleting
    it switches it off. docs/istio.md tells what each resource does. Nothing is applied.
    """
    from understudy.deploy.kubernetes.istio.plan import (
        GATEWAY_LABELS,
        GATEWAY_NAMESPACE,
        Plan,
        parse_selector,
        parse_version,
    )
    from understudy.deploy.kubernetes.istio.tree import PREPARE, ROUTE, files
    from understudy.deploy.kubernetes.render.kustomize import write
    from understudy.statesync.pool.spec_reader import load_spec

    gateway = mode == "gateway"
    plan = Plan(
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
