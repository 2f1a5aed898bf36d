"""Members of a :class:`ControlPool` with applications behind them that answer who they are."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.harness.forkserver import forked
from tests.harness.waiting import free_port
from tests.xds.control.control_pool import ControlPool

ROOT = Path(__file__).parents[4]
Orders = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class App:
    """A running application, on a port of loopback."""

    port: int
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running_apps(names: Sequence[str], notes: Path) -> Iterator[dict[str, App]]:
    """``tests.xds.envoy.echo_member`` under each name; they note their requests in ``notes``."""
    notes.touch()
    apps = {name: _start(name, free_port(), notes) for name in names}
    try:
        yield apps
    finally:
        for app in apps.values():
            app.kill()


def _start(name: str, port: int, notes: Path) -> App:
    command = [sys.executable, "-m", "tests.xds.envoy.echo_member", name, str(port), str(notes)]
    return App(port, subprocess.Popen(forked(command), cwd=ROOT))


async def join(pool: ControlPool, addresses: Mapping[str, str]) -> Orders:
    """Members of these names, whose applications are reached at these addresses, own all slots as the table says."""
    control = next(iter(pool.controls.values()))
    await control.ready()
    for name, address in addresses.items():
        member = pool.member(name)
        member.record = replace(member.record, app=address)
        await member.join()
    seen = await pool.table_with(lambda table: {order[0] for order in table.orders} == set(addresses), "a fair table")
    await pool.claim_all(seen)
    return seen.table.orders
