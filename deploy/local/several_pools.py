"""Several pools on this machine: where each of them is at the one front Envoy."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import Layout
from understudy.statesync.pool.addresses import split_address
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.spec_front import ANY_HOST, Front, first_conflict


def with_fronts(specs: Sequence[PoolSpec], pick: Callable[[], str]) -> tuple[PoolSpec, ...]:
    """The specs, each with a ``front``; a pool without one gets a free port of its own.

    Raises:
        DeployError: two pools have one name, or the same place at the front Envoy.
    """
    placed = [
        spec if spec.front else spec.model_copy(update={"front": Front(port=split_address(pick())[1])})
        for spec in specs
    ]
    require_apart(placed)
    return tuple(placed)


def require_apart(specs: Sequence[PoolSpec]) -> None:
    """Raise :class:`DeployError` if two pools have one name, or the same place at a front Envoy."""
    names = [spec.pool for spec in specs]
    if len(set(names)) < len(names):
        raise DeployError("-f: two files have the same pool; every pool needs a name of its own")
    uses = [spec.front_use for spec in specs if spec.front_use is not None]
    for number, use in enumerate(uses):
        if why := first_conflict(use, uses[:number]):
            raise DeployError(f"pool {use.pool!r}: {why}; choose another port, host or path")


def listen_address(listen: str, front: Front) -> str:
    """Where the front Envoy accepts clients of a pool; ``listen`` has the host."""
    return f"{listen.rpartition(':')[0] or '127.0.0.1'}:{front.port}"


def client_address(layout: Layout, spec: PoolSpec) -> str:
    """Where clients reach a pool that runs beside others, as text: its URLs, and the hosts that requests must name."""
    front, listen = spec.front, layout.front.listen
    if spec.tcp is not None or front is None:
        return listen
    scheme = "https" if front.tls else "http"
    urls = ", ".join(f"{scheme}://{listen}{path.rstrip('/')}" for path in front.paths)
    hosts = [host for host in front.hosts if host != ANY_HOST]
    return f"{urls} (Host: {', '.join(hosts)})" if hosts else urls


def request_command(layout: Layout, spec: PoolSpec) -> str:
    """A command that sends a request to such a pool."""
    front, listen = spec.front, layout.front.listen
    if spec.tcp is not None or front is None:
        return f"nc {listen.replace(':', ' ')}"
    host = front.hosts[0].replace("*", "any")
    if front.tls:
        port = listen.rpartition(":")[2]
        return f"curl -ik --connect-to {host}:{port}:{listen} https://{host}:{port}{front.paths[0]}"
    name = "" if front.hosts[0] == ANY_HOST else f"-H 'Host: {host}' "
    return f"curl -i {name}http://{listen}{front.paths[0]}"


def layouts_of(layout: Layout) -> list[Layout]:
    """The layout of each pool, the first one first."""
    return [replace(layout, beside=()), *(layout.of(one.pool) or layout for one in layout.beside)]
