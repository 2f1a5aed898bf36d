"""Command lines of ``understudy control`` and ``understudy apply``, for local pools and for Kubernetes.

Pure. ``understudy up`` and ``understudy demo`` start processes with these command lines, and rendered manifests start
containers with them. Only the addresses differ. A value may be a variable that the platform expands, such as
``$(POD_NAME)``. ``understudy COMMAND --help`` describes the options.
"""

from collections.abc import Sequence


def control_arguments(
    *,
    name: str,
    pool: str,
    etcd: Sequence[str],
    grpc: str,
    http: str,
    traces: str,
    otlp_http: str = "",
    etcd_leader: str = "",
    advertise_grpc: str = "",
    advertise_http: str = "",
    every_pool: bool = False,
    insecure: bool = False,
    open_http: bool = False,
) -> tuple[str, ...]:
    """The arguments of ``control``. Addresses are ``host:port``, those of etcd also URLs; ``traces`` is a file.

    With ``every_pool`` the control server is for all pools in etcd, not for ``pool``.
    """
    return (
        *("control", "--name", name, *(("--all-pools",) if every_pool else ("--pool", pool)), "--etcd", ",".join(etcd)),
        *option("--etcd-leader", etcd_leader),
        *("--grpc", grpc, "--http", http),
        *option("--advertise-grpc", advertise_grpc),
        *option("--advertise-http", advertise_http),
        *("--traces", traces),
        *option("--otlp-http", otlp_http),
        *(("--insecure",) if insecure else ()),
        *(("--open-http",) if open_http else ()),
    )


def apply_arguments(*, file: str, etcd: Sequence[str]) -> tuple[str, ...]:
    """The arguments of ``apply``, which writes a pool's spec to etcd."""
    return ("apply", "-f", file, "--etcd", ",".join(etcd))


def option(name: str, value: str) -> tuple[str, ...]:
    """An option with its value; nothing if the value is empty."""
    return (name, value) if value else ()
