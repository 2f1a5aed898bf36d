"""What the commands share: option callbacks, the options for etcd, TLS and the pool, and ``-o``.

An address comes from the option, else from the environment, else from the state directory of a local pool.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from understudy.deploy.common.completion import complete_pool
from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import Layout, distant_layouts, read_layout, state_directory
from understudy.deploy.common.printable import printable_view, say
from understudy.statesync.etcd.settings import DEFAULT_ENDPOINT, EtcdSettings
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.app_health import AppHealth
from understudy.statesync.tls.identity import DOMAIN
from understudy.statesync.tls.pem_files import PemFiles

F = TypeVar("F", bound=Callable[..., Any])


def shown_option(*names: str, **settings: Any) -> Callable[[F], F]:  # noqa: ANN401 - click's
    """An option whose help shows its default."""
    return click.option(*names, show_default=True, **settings)


def _app_health(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: how the application's health is checked (``understudy.statesync.pool.app_health``)."""
    try:
        AppHealth.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None
    return value


app_health_option = shown_option(
    "--app-health",
    default="/healthz",
    callback=_app_health,
    help="Health check of the application: an HTTP path that must answer 200, grpc or grpc:SERVICE "
    "(grpc.health.v1), or tcp for a connection.",
)


def address(_: click.Context, parameter: click.Parameter, value: Any) -> Any:  # noqa: ANN401 - one text or several
    """Option callback: every value must be ``HOST:PORT``; an IPv6 host gets its brackets."""
    if not value:
        return value
    texts = [_bracketed(text) for text in ((value,) if isinstance(value, str) else value)]
    for text in texts:
        try:
            split_address(text, lowest_port=1)
        except ValueError as error:
            raise click.BadParameter(str(error), param=parameter) from None
    return texts[0] if isinstance(value, str) else tuple(texts)


def address_list(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Option callback: ``HOST:PORT,...``."""
    return tuple(
        str(address(context, parameter, part.strip().removeprefix("http://")))
        for part in value.split(",")
        if part.strip()
    )


def _bracketed(text: str) -> str:
    """``fd00::1:8000`` as ``[fd00::1]:8000``. A manifest that joins a pod's address and a port writes no brackets."""
    host, _, port = text.rpartition(":")
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else text


def address_or_socket(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: ``HOST:PORT`` or ``unix:/path``."""
    return value if value.startswith("unix:/") else str(address(context, parameter, value))


def address_or_off(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: ``HOST:PORT``, ``*:PORT`` for every address, or ``off``."""
    if value.startswith("*:"):
        address(context, parameter, f"all{value[1:]}")
        return value
    return value if value == "off" else str(address(context, parameter, value))


def file_mode(_: click.Context, parameter: click.Parameter, value: str) -> int:
    """Option callback: permissions in octal, like ``0660``."""
    try:
        mode = int(value, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise click.BadParameter(f"{value} is not a file mode like 0660", param=parameter)
    return mode


class EtcdOptions(msgspec.Struct, frozen=True):
    """The etcd options of a command; :meth:`settings` fills in the defaults."""

    endpoints: str | None
    ca: Path | None
    cert: Path | None
    key: Path | None
    user: str | None

    def here(self) -> EtcdSettings:
        """The addresses and credentials of etcd, by default those of the local pool of this directory."""
        return self.settings(read_layout(state_directory(os.environ)))

    def settings(self, layout: Layout | None) -> EtcdSettings:
        """The addresses and credentials of etcd; ``layout`` is that of the local pool, if there is one."""
        if (self.cert or self.key) and not self.ca:
            raise DeployError("--etcd-cert and --etcd-key also need --etcd-ca")
        given = tuple(part.strip() for part in (self.endpoints or "").split(",") if part.strip())
        return EtcdSettings(
            given or (layout.etcd if layout else (DEFAULT_ENDPOINT,)),
            tls=PemFiles(self.cert, self.key, self.ca) if self.ca else None,
            username=self.user,
            password=os.environ.get("UNDERSTUDY_ETCD_PASSWORD"),
        )


def etcd_options(command: F) -> F:
    """Add the etcd options; the command gets one argument, ``etcd: EtcdOptions``."""

    @functools.wraps(command)
    def collect(**given: Any) -> Any:  # noqa: ANN401 - whatever the command returns
        etcd = EtcdOptions(
            given.pop("etcd_endpoints"),
            given.pop("etcd_ca"),
            given.pop("etcd_cert"),
            given.pop("etcd_key"),
            given.pop("etcd_user"),
        )
        return command(etcd=etcd, **given)

    wrapped: Any = collect
    for option in _ETCD_OPTIONS:
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


PRIVATE_FILE = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)
_PEM = click.Path(path_type=Path, exists=True, dir_okay=False)
_ETCD_OPTIONS = (
    click.option(
        "--etcd-user",
        envvar="UNDERSTUDY_ETCD_USER",
        help="User name for etcd; the password comes from UNDERSTUDY_ETCD_PASSWORD. Default: no login.",
    ),
    click.option(
        "--etcd-key", type=_PEM, envvar="UNDERSTUDY_ETCD_KEY", help="Client key for etcd (PEM file). Default: none."
    ),
    click.option(
        "--etcd-cert",
        type=_PEM,
        envvar="UNDERSTUDY_ETCD_CERT",
        help="Client certificate for etcd (PEM file). Default: none.",
    ),
    click.option(
        "--etcd-ca",
        type=_PEM,
        envvar="UNDERSTUDY_ETCD_CA",
        help="CA of etcd's certificates (PEM file). Default: no TLS to etcd.",
    ),
    click.option(
        "--etcd",
        "etcd_endpoints",
        envvar="UNDERSTUDY_ETCD",
        metavar="HOST:PORT,...",
        help="Addresses of etcd. Default: those of the local pool, else 127.0.0.1:2379.",
    ),
)


class TlsOptions(PemFiles, frozen=True):
    """The certificate of this process for mTLS over gRPC and the peer API.

    ``domain`` is the trust domain of the SPIFFE ids in the peers' certificates.
    """

    domain: str


def tls_options(command: F) -> F:
    """Add ``--tls-cert`` and so on, and ``--trust-domain``; the command gets ``tls: TlsOptions | None``."""

    @functools.wraps(command)
    def collect(**given: Any) -> Any:  # noqa: ANN401 - whatever the command returns
        cert, key, ca = (given.pop(f"tls_{part}") for part in ("cert", "key", "ca"))
        domain = given.pop("trust_domain")
        if any((cert, key, ca)) and not all((cert, key, ca)):
            raise DeployError("--tls-cert, --tls-key and --tls-ca belong together: give all three or none")
        return command(tls=TlsOptions(cert, key, ca, domain) if cert else None, **given)

    wrapped: Any = collect
    for option in _TLS_OPTIONS:
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


_TLS_OPTIONS = (
    shown_option(
        "--trust-domain",
        default=DOMAIN,
        envvar="UNDERSTUDY_TRUST_DOMAIN",
        help="mTLS: trust domain of the SPIFFE ids in the peers' certificates.",
    ),
    click.option(
        "--tls-ca",
        type=_PEM,
        envvar="UNDERSTUDY_TLS_CA",
        help="mTLS: CA of the peers' certificates (PEM file). Default: no mTLS.",
    ),
    click.option(
        "--tls-key",
        type=_PEM,
        envvar="UNDERSTUDY_TLS_KEY",
        help="mTLS: key of this process (PEM file). Default: no mTLS.",
    ),
    click.option(
        "--tls-cert",
        type=_PEM,
        envvar="UNDERSTUDY_TLS_CERT",
        help="mTLS: certificate of this process (PEM file). Default: no mTLS.",
    ),
)


def require_name(option: str, name: str) -> None:
    """Raise :class:`DeployError` unless ``name`` can name a pool, member or site."""
    from pydantic import TypeAdapter, ValidationError

    from understudy.statesync.pool.spec_parts import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise DeployError(
            f"{option} {name!r}: a name has 1 to 63 of a-z 0-9 . - and starts and ends with a letter or digit"
        ) from None


def require_label_value(option: str, value: str, what: str) -> None:
    """Raise :class:`DeployError` unless ``value`` is '' or can be the value of a label in Kubernetes."""
    if value and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value):
        raise DeployError(
            f"{option} {value!r}: a {what} has 1 to 63 letters, digits and . _ -, and starts and ends with a letter or "
            "digit"
        )


def examples(*lines: str) -> str:
    """The examples at the end of a command's help. Their lines are not wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def pool_option(*, required: bool) -> Callable[[F], F]:
    """The option ``--pool``."""
    default = "" if required else " Default: the local pool."
    return click.option(
        "--pool",
        envvar="UNDERSTUDY_POOL",
        required=required,
        shell_complete=complete_pool,
        help=f"Name of the pool.{default}",
    )


def spec_file_option(note: str = "") -> Callable[[F], F]:
    """The option ``-f``: a pool spec; the command gets it as ``spec_file``."""
    return click.option(
        "-f",
        "--file",
        "spec_file",
        required=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"Pool spec (YAML file){note}.",
    )


def output_option(command: F) -> F:
    """The option ``-o`` of a command that shows one thing."""
    return _output(command, f"{_FORMATS_HELP}.", *_FORMATS)


def list_output_option(command: F) -> F:
    """The option ``-o`` of a command that lists things with names; ``-o name`` prints only the names."""
    return _output(command, f"{_FORMATS_HELP}, name for one name per line.", *_FORMATS, "name")


def report_output_option(command: F) -> F:
    """The option ``-o`` of a command that writes files and reports what it wrote."""
    return _output(command, "Output format: table for people, json for programs.", "table", "json")


_FORMATS = ("table", "json", "yaml")
_FORMATS_HELP = "Output format: table for people, json or yaml for programs"


def _output(command: F, text: str, *formats: str) -> F:
    return click.option("-o", "--output", type=click.Choice(formats), default="table", show_default=True, help=text)(
        command
    )


class PoolLocation(msgspec.Struct, frozen=True):
    """The pool that a command reads, and the etcd that has it."""

    etcd: EtcdSettings
    pool: str
    directory: Path
    layout: Layout | None


def locate_pool(etcd: EtcdOptions, pool: str | None) -> PoolLocation:
    """Find the pool from options, environment and state directory. Raises :class:`DeployError` without one."""
    directory = state_directory(os.environ)
    layout = read_layout(directory)
    if pool is None and layout is None:
        if sides := [one.distant.site for one in distant_layouts(directory) if one.distant]:
            raise DeployError(
                f"two distant sites run from this directory, {' and '.join(sides)}: choose one with "
                f"UNDERSTUDY_DIR={directory / sides[0]}"
            )
        raise DeployError(
            f"no local pool runs from this directory (there is no {directory}/local.json): "
            "start one with 'understudy up', or name another pool with --etcd and --pool"
        )
    name = pool or (layout.pool if layout else "")
    own = layout.of(name) if layout is not None and etcd.endpoints is None else None
    return PoolLocation(etcd.settings(layout), name, directory, own)


def show(
    output: str,
    view: Mapping[str, Any],
    draw: Callable[[Any], Any],
    names: Callable[[Any], Iterable[object]] = lambda _: (),
) -> None:
    """Print a view as JSON, as YAML, as a table, or only the ``names`` in it, one per line.

    In a :data:`SECTION`, JSON and YAML are collected, and names get the pool in front.
    """
    section = SECTION.get()
    if section is not None and output in ("json", "yaml"):
        section.views.append(view)
    elif output == "json":
        click.echo(json.dumps(view, indent=2))
    elif output == "yaml":
        click.echo(as_yaml(view), nl=False)
    elif output == "name":
        for name in names(view):
            say(f"{section.pool}/{name}" if section else str(name))
    else:
        from understudy.deploy.common.console_style import Terminal

        Terminal().print(draw(printable_view(view)))


class Section(msgspec.Struct):
    """The output for one of several pools."""

    pool: str
    views: list[Mapping[str, Any]] = msgspec.field(default_factory=list)

    def document(self, exit_code: int, error: str) -> dict[str, Any]:
        """What ``-o json`` has of the pool: its view, and with which exit code or error the command ended for it."""
        found: dict[str, Any] = {"pool": self.pool, "exit_code": exit_code}
        if error:
            found["error"] = error
        for view in self.views:
            found |= view
        return found


SECTION: ContextVar[Section | None] = ContextVar("SECTION", default=None)
"""The pool that a command is run for, if it is run for several (``--pool all``)."""


def as_yaml(view: Mapping[str, Any]) -> str:
    """The data of ``-o json`` in YAML. As in JSON, no text is folded, and non-ASCII characters are escaped."""
    import yaml

    return yaml.safe_dump(json.loads(json.dumps(view)), sort_keys=False, width=2**31)
