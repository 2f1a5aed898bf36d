"""``understudy injector`` (the admission webhook) and ``understudy inject`` (the same for files)."""

import asyncio
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from understudy.deploy.common.errors import DeployError, NegativeAnswer
from understudy.deploy.common.logs import LogOptions, start_logging
from understudy.deploy.common.options import address, examples, shown_option
from understudy.deploy.common.printable import say

if TYPE_CHECKING:  # it imports pydantic, which would slow down --help
    from understudy.deploy.kubernetes.base.injection_settings import InjectionSettings

F = TypeVar("F", bound=Callable[..., Any])
_LEVELS = click.Choice(["debug", "info", "warning", "error"])
_OPTIONS = (
    click.option(
        "--sidecar-image",
        envvar="UNDERSTUDY_SIDECAR_IMAGE",
        show_envvar=True,
        required=True,
        help="Container image of the sidecar.",
    ),
    click.option(
        "--etcd",
        "etcd_endpoints",
        envvar="UNDERSTUDY_ETCD",
        show_envvar=True,
        metavar="HOST:PORT,...",
        required=True,
        help="Addresses of etcd as sidecars reach them from their pods.",
    ),
    shown_option(
        "--form",
        type=click.Choice(["auto", "native", "classic"]),
        default="auto",
        help="Form of the sidecar container: native (Kubernetes 1.29 or newer), classic, or auto for the cluster's "
        "version.",
    ),
    shown_option(
        "--peer-certificates",
        default="none",
        help="Certificates of members: none (plain text), csi:ISSUER[:KIND[:GROUP]] (cert-manager), or secret:NAME.",
    ),
    click.option(
        "--etcd-tls-secret",
        default="",
        help="Secret in the pod's namespace with ca.crt for etcd. Default: no TLS to etcd.",
    ),
    click.option(
        "--etcd-client-certificate",
        is_flag=True,
        help="Use tls.crt and tls.key of --etcd-tls-secret as client certificate for etcd.",
    ),
    click.option(
        "--etcd-login-secret",
        default="",
        help="Secret in the pod's namespace with username and password for etcd. Default: no login.",
    ),
    click.option(
        "--session-keys-secret",
        default="",
        help="Secret in the pod's namespace with the keys that encrypt sessions. Default: no encryption.",
    ),
    shown_option("--control-port", type=click.IntRange(1, 65535), default=18000, hidden=True),
    shown_option("--sidecar-log-level", type=_LEVELS, default="info", help="Log level of sidecars."),
    shown_option(
        "--drain-seconds",
        type=click.FloatRange(0, 600),
        default=10.0,
        help="Maximum seconds for the handover when a pod ends.",
    ),
    shown_option(
        "--run-as-user",
        type=click.IntRange(0, 2**31 - 1),
        default=65532,
        help="User id of the sidecar; 0: the cluster chooses it (OpenShift).",
    ),
)


def sidecar_options(command: F) -> F:
    """Add the options that describe the sidecar; the command gets ``sidecar: InjectionSettings``."""

    @functools.wraps(command)
    def collect(**given: Any) -> Any:  # noqa: ANN401 - whatever the command returns
        from understudy.deploy.kubernetes.base.injection_settings import BadSetting, InjectionSettings, PeerCertificates

        try:
            certificates = PeerCertificates.parse(given.pop("peer_certificates"))
        except BadSetting as error:
            raise DeployError(f"--peer-certificates {error}") from None
        etcd = tuple(part.strip() for part in given.pop("etcd_endpoints").split(",") if part.strip())
        settings = InjectionSettings(
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
    *("form", "etcd_tls_secret", "etcd_client_certificate", "etcd_login_secret", "session_keys_secret"),
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
@shown_option("--listen", default="0.0.0.0:9443", callback=address, help="HTTPS address for reviews.")
@click.option(
    "--metrics", default="", callback=address, help="Plain HTTP address for /metrics, HOST:PORT. Default: none."
)
@click.option(
    "--cert-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory with tls.crt and tls.key, for example from cert-manager; changes are picked up. Default: none.",
)
@click.option("--self-signed", is_flag=True, help="Create certificates, keep them in a Secret and renew them.")
@shown_option("--namespace", default="understudy-system", help="Namespace of the injector.")
@shown_option("--service", default="understudy-injector", help="Name of its Service and of its webhook.")
@shown_option(
    "--certificates-secret",
    default="understudy-injector-certificates",
    help="Secret for --self-signed; it must exist, and may be empty.",
)
@sidecar_options
@click.pass_obj
def injector(
    logs: LogOptions,
    listen: str,
    metrics: str,
    cert_dir: Path | None,
    self_signed: bool,
    namespace: str,
    service: str,
    certificates_secret: str,
    sidecar: "InjectionSettings",
) -> None:
    """Run the admission webhook that adds sidecars to pods labelled understudy.io/inject: "true"."""
    from understudy.deploy.kubernetes.webhook.configuration import InjectorPlace

    try:
        from understudy.deploy.kubernetes.webhook.injector import InjectorSettings, run_injector
    except ModuleNotFoundError as missing:
        raise DeployError(f"{missing.name} is not installed: pip install 'understudy[injector]'") from None
    if (cert_dir is None) == (not self_signed):
        raise DeployError("the webhook needs a certificate: give either --cert-dir DIR or --self-signed")
    start_logging(logs)
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
@click.option(
    "-f", "--file", "files", multiple=True, required=True, help="Manifest file, YAML or JSON; - for stdin; repeatable."
)
@shown_option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", help="Output format.")
@click.option("--pool", default="", help="Pool for workloads that name none. Default: such workloads are not changed.")
@click.option(
    "--kubernetes-version", default="", help="Choose the form for this version, such as 1.28. Default: that of --form."
)
@sidecar_options
def inject(
    files: tuple[str, ...], output: str, pool: str, kubernetes_version: str, sidecar: "InjectionSettings"
) -> None:
    """Add sidecars to Pods, Deployments, StatefulSets, Jobs, CronJobs and Lists of them in files.

    The command writes all objects to stdout and a line for each workload to stderr. Exit code 1: a workload cannot
    have a sidecar.
    """
    from dataclasses import replace

    from understudy.deploy.kubernetes.base.injection_settings import NATIVE, BadSetting, form_for
    from understudy.deploy.kubernetes.base.lenient_json import InjectionRefused
    from understudy.deploy.kubernetes.injection.workloads import (
        UnreadableFile,
        inject_objects,
        read_objects,
        write_objects,
    )

    try:
        form = form_for(kubernetes_version) if kubernetes_version else sidecar.form
        settings = replace(sidecar, form=NATIVE if form == "auto" else form)
        documents = [document for name in files for document in read_objects(_read(name), name)]
        done, outcomes = inject_objects(documents, settings, pool=pool)
    except (BadSetting, UnreadableFile) as error:
        raise DeployError(str(error)) from None
    except InjectionRefused as refused:
        raise NegativeAnswer(str(refused)) from None
    click.echo(write_objects(done, output), nl=False)
    for outcome in outcomes:
        result = "sidecar added" if outcome.injected else "not changed"
        say(f"{outcome.name}: {'; '.join((result, *outcome.notes))}", err=True)


def _read(name: str) -> str:
    from understudy.statesync.parsing.spec_yaml import FILE_MOST

    try:
        if name == "-":
            return sys.stdin.read(FILE_MOST + 1)
        with Path(name).open(encoding="utf-8") as file:
            return file.read(FILE_MOST + 1)  # a longer one is refused
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"{name}: cannot be read: {error}") from None
