"""The larger of two sites of a local pool that has no third: it is killed, kept down, and brought back.

Its members of etcd were given up meanwhile. So each is added to etcd again with no data, one by one.
"""

import contextlib
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import HELD_FILE, Layout, hold
from understudy.deploy.drill.fault_injectors import running_pids
from understudy.deploy.local.etcd_join import LocalEtcd, add, etcds_of
from understudy.deploy.local.several_pools import layouts_of


def larger_site(layout: Layout) -> tuple[str, LocalEtcd]:
    """The site with most of etcd, and the one member of etcd elsewhere.

    Raises:
        DeployError: there is no such site.
    """
    etcds = etcds_of(layout) if layout.etcd_sites else []
    site, count = Counter(one.site for one in etcds).most_common(1)[0] if etcds else ("", 0)
    others = [one for one in etcds if one.site != site]
    if not site or count * 2 <= len(etcds) or len(others) != 1 or not others[0].site:
        raise DeployError(
            "this drill needs two members of etcd on one site and one on the other: start the pool with "
            "'understudy up --sites east,west --etcds 3 --controls 2 --no-witness'"
        )
    return site, others[0]


class LostSite:
    """The larger site of the pool in ``directory``; ``site`` is its name. ``left`` is the member of etcd elsewhere.

    Raises:
        DeployError: the pool has no such site.
    """

    def __init__(self, directory: Path, layout: Layout) -> None:
        self.site, self.left = larger_site(layout)
        self.etcds = [one for one in etcds_of(layout) if one.site == self.site]
        self.has_control_elsewhere = any(control.site == self.left.site for control in layout.controls)
        self._directory = directory
        self._layout = layout
        self._down: set[str] = set()

    def data_of(self, etcd: LocalEtcd) -> Path:
        """The data directory of a member of etcd."""
        return self._directory / etcd.name

    def kill(self) -> None:
        """Send SIGKILL to all of the site at once, and keep it down. Raises :class:`DeployError` if not all of it runs.

        Front Envoys go on: whoever has clients has one elsewhere.
        """
        names = {one.name for one in self.etcds}
        names |= {control.name for control in self._layout.controls if control.site == self.site}
        members = [member for one in layouts_of(self._layout) for member in one.members if member.site == self.site]
        names |= {f"{member.name}/{part}" for member in members for part in ("app", "sidecar")}
        self._end(names, signal.SIGKILL)

    def stop_left(self) -> None:
        """Ask the member of etcd elsewhere to end, and keep it down."""
        self._end({self.left.name}, signal.SIGTERM)

    def release(self, *names: str) -> None:
        """Let these processes start again, or all of them."""
        self._down = self._down.difference(names) if names else set()
        if self._down:
            hold(self._directory, sorted(self._down))
        else:
            (self._directory / HELD_FILE).unlink(missing_ok=True)

    async def add(self, etcd: LocalEtcd) -> str:
        """Add a member to etcd with no data, and let it start. Returns why etcd refuses it for now, '' if it does not.

        The member must be down. Its data is deleted.
        """
        shutil.rmtree(self.data_of(etcd), ignore_errors=True)
        if refusal := await add(self._directory, etcd, self.left.client):
            return refusal
        self.release(etcd.name)
        return ""

    def _end(self, names: Iterable[str], number: signal.Signals) -> None:
        pids = running_pids(self._directory, self._layout, set(names))
        self._down |= set(names)
        hold(self._directory, sorted(self._down))
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
