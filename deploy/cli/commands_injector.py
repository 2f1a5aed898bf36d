"""``understudy injector`` (the admission webhook) and ``understudy inject`` (the same for files, without a cluster)."""

import asyncio
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from understudy.deploy.common.errors import DeployError, NotFoundError
from understudy.deploy.common.options import address, examples, start_logging
from understudy.deploy.common.printable import say

if TYPE_CHECKING:  # pydantic takes its time, which no --help should wait for
    from understudy.deploy.kubernetes.base.sidecar_settings import SidecarSettings

F = TypeVar("F", bound=Callable[..., Any])
_LEVELS = click.Choice(["debug", "info", "warning", "error"])
_OPTIONS = (
    click.option(
        "--sidecar-image",
        envvar="UNDERSTUDY_SIDECAR_IMAGE",
        show_envvar=True,
        required=True,
        help="The sidecar's image.",
    ),
    click.option(
        "--etcd",
        "etcd_endpoints",
        envvar="UNDERSTUDY_ETCD",
        show_envvar=True,
        metavar="HOST:PORT,...",
        required=True,
        help="Where sidecars find etcd: as seen from their pods.",
    ),
    click.option(
        "--form",
        type=click.Choice(["auto", "native", "classic"]),
        default="auto",
        show_default=True,
        help="Native sidecars need Kubernetes 1.29; auto: by the cluster's version.",
    ),
    click.option(
        "--peer-certificates",
        default="none",
        show_default=True,
        help="Members' certificates: none (plain text), csi:ISSUER[:KIND[:GROUP]] of cert-manager, or secret:NAME.",
    ),
    click.option("--etcd-tls-secret", default="", help="Secret beside the pod: ca.crt [tls.crt, tls.key] for etcd."),
    click.option(
        "--etcd-client-certificate", is_flag=True, help="That Secret has tls.crt and tls.key to show to etcd."
    ),
    click.option("--etcd-credentials-secret", default="", help="Secret beside the pod: username, password for etcd."),
    click.option(
        "--session-keys-secret", default="", help="Secret beside the pod: keys that sessions are sealed with."
    ),
    click.option("--control-port", type=click.IntRange(1, 65535), default=18000, show_default=True, hidden=True),
    click.option("--sidecar-log-level", type=_LEVELS, default="info", show_default=True, help="How much sidecars log."),
    click.option(
        "--drain-seconds",
        type=click.FloatRange(0, 600),
        default=10.0,
        show_default=True,
        help="How long a handover may take when a pod ends.",
    ),
    click.option(
        "--run-as-user",
        type=click.IntRange(0, 2**31 - 1),
        default=65532,
        show_default=True,
        help="The sidecar's user id; 0 leaves it to the cluster (OpenShift).",
    ),
)


def sidecar_options(command: F) -> F:
    """Add the options that describe the sidecar; the command gets ``sidecar: SidecarSettings``."""

    @functools.wraps(command)
    def collect(**given: Any) -> Any:  # noqa: ANN401 - whatever the command returns
        from understudy.deploy.kubernetes.base.sidecar_settings import BadSetting, PeerCertificates, SidecarSettings

        try:
            certificates = PeerCertificates.parse(given.pop("peer_certificates"))
        except BadSetting as error:
            raise DeployError(f"--peer-certificates {error}") from None
        etcd = tuple(part.strip() for part in given.pop("etcd_endpoints").split(",") if part.strip())
        settings = SidecarSettings(
            image=given.pop("sidecar_image"),
            etcd=etcd,
            peer_certificates=certificates,
            log_level=given.pop("sidecar_log_level"),
            **{name: given.pop(name) for name in _PASSED_ON},
        )
        return command(sidecar=settings, **given)

    wrapped: Any = collect
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


_PASSED_ON = (
    *("form", "etcd_tls_secret", "etcd_client_certificate", "etcd_credentials_secret", "session_keys_secret"),
    *("control_port", "drain_seconds", "run_as_user"),
)


@click.command(
    epilog=examples(
        "understudy injector --self-signed --namespace understudy-system \\",
        "    --sidecar-image registry.example/understudy-sidecar:0.1.0 --etcd etcd.understudy-system:2379",
        "understudy injector --cert-dir /etc/certificates --namespace understudy-system \\",
        "    --sidecar-image registry.example/understudy-sidecar:0.1.0 --etcd etcd.understudy-system:2379",
    )
)
@click.option("--listen", default="0.0.0.0:9443", show_default=True, callback=address, help="Reviews, over TLS.")
@click.option("--metrics", default="", callback=address, help="/metrics in plain HTTP here, host:port.")
@click.option(
    "--cert-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="tls.crt and tls.key, such as cert-manager keeps; read again when they change.",
)
@click.option("--self-signed", is_flag=True, help="Make certificates, keep them in a Secret, and renew them.")
@click.option("--namespace", default="understudy-system", show_default=True, help="The injector's own namespace.")
@click.option("--service", default="understudy-injector", show_default=True, help="Its Service and webhook by name.")
@click.option(
    "--certificates-secret",
    default="understudy-injector-certificates",
    show_default=True,
    help="The Secret for --self-signed; it must be there, and may be empty.",
)
@sidecar_options
@click.pass_obj
def injector(
    log_level: str,
    listen: str,
    metrics: str,
    cert_dir: Path | None,
    self_signed: bool,
    namespace: str,
    service: str,
    certificates_secret: str,
    sidecar: "SidecarSettings",
) -> None:
    """Run the admission webhook that adds sidecars to pods labelled understudy.io/inject: "true"."""
    from understudy.deploy.kubernetes.webhook.configuration import InjectorPlace

    try:
        from understudy.deploy.kubernetes.webhook.injector import InjectorSettings, run_injector
    except ModuleNotFoundError as missing:
        raise DeployError(f"{missing.name} is not installed: pip install 'understudy[injector]'") from None
    if (cert_dir is None) == (not self_signed):
        raise DeployError("say where the certificate comes from: either --cert-dir DIR or --self-signed")
    start_logging(log_level)
    place = InjectorPlace(namespace, service, certificates_secret if self_signed else "")
    settings = InjectorSettings(listen, sidecar, place, metrics, cert_dir, self_signed)
    raise SystemExit(asyncio.run(run_injector(settings)))


@click.command(
    epilog=examples(
        "understudy inject -f cart.yaml --sidecar-image understudy-sidecar:0.1.0 --etcd etcd:2379 > injected.yaml",
        "export UNDERSTUDY_SIDECAR_IMAGE=understudy-sidecar:0.1.0 UNDERSTUDY_ETCD=etcd:2379",
        "kubectl get deployment cart -o yaml | understudy inject -f - --pool cart | kubectl apply -f -",
    )
)
@click.option("-f", "--file", "files", multiple=True, required=True, help="YAML or JSON; - for stdin; repeatable.")
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True, help="Format.")
@click.option(
    "--pool", default="", help="The pool of every workload that names none; without it those stay as they are."
)
@click.option("--kubernetes-version", default="", help="Choose the form for this version, such as 1.28.")
@sidecar_options
def inject(files: tuple[str, ...], output: str, pool: str, kubernetes_version: str, sidecar: "SidecarSettings") -> None:
    """Add sidecars to Pods, Deployments, StatefulSets, Jobs, CronJobs and Lists of them in files.

    Writes everything to stdout, and what was done to stderr. Exit code 1 if a workload cannot have one.
    """
    from dataclasses import replace

    from understudy.deploy.kubernetes.base.lenient_json import Refused
    from understudy.deploy.kubernetes.base.sidecar_settings import NATIVE, BadSetting, form_for
    from understudy.deploy.kubernetes.injection.workloads import Unreadable, inject_objects, read_objects, write_objects

    try:
        form = form_for(kubernetes_version) if kubernetes_version else sidecar.form
        settings = replace(sidecar, form=NATIVE if form == "auto" else form)
        documents = [document for name in files for document in read_objects(_read(name), name)]
        done, outcomes = inject_objects(documents, settings, pool=pool)
    except (BadSetting, Unreadable) as error:
        raise DeployError(str(error)) from None
    except Refused as refused:
        raise NotFoundError(str(refused)) from None
    click.echo(write_objects(done, output), nl=False)
    for outcome in outcomes:
        said = "sidecar added" if outcome.injected else "left as it is"
        say(f"{outcome.name}: {'; '.join((said, *outcome.notes))}", err=True)


def _read(name: str) -> str:
    from understudy.statesync.parsing.spec_yaml import FILE_MOST

    try:
        if name == "-":
            return sys.stdin.read(FILE_MOST + 1)
        with Path(name).open(encoding="utf-8") as file:
            return file.read(FILE_MOST + 1)  # a longer one is refused whatever it says
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"{name}: cannot be read: {error}") from None
