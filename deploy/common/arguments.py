"""The command lines of a pool's parts, from where things are: one source for the local pool and for Kubernetes.

Pure. ``understudy up`` and ``understudy demo`` start their processes with these, and the rendered manifests their
containers; what differs is only the addresses. Texts may be variables that the platform fills in, such as
``$(POD_NAME)``. What an option means is told by ``understudy COMMAND --help``.
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
    advertise_grpc: str = "",
    advertise_http: str = "",
    insecure: bool = False,
    open_http: bool = False,
) -> tuple[str, ...]:
    """``control ...``. Addresses are ``host:port``, ``etcd`` URLs or ``host:port``, ``traces`` a file."""
    return (
        *("control", "--name", name, "--pool", pool, "--etcd", ",".join(etcd)),
        *("--grpc", grpc, "--http", http),
        *given("--advertise-grpc", advertise_grpc),
        *given("--advertise-http", advertise_http),
        *("--traces", traces),
        *given("--otlp-http", otlp_http),
        *(("--insecure",) if insecure else ()),
        *(("--open-http",) if open_http else ()),
    )


def apply_arguments(*, file: str, etcd: Sequence[str]) -> tuple[str, ...]:
    """``apply ...``: puts a pool's spec into etcd."""
    return ("apply", "-f", file, "--etcd", ",".join(etcd))


def given(option: str, value: str) -> tuple[str, ...]:
    """An option with its value; nothing if there is no value."""
    return (option, value) if value else ()
