"""Fault injectors: they inject the fault of a drill into a pool, and undo it.

:class:`LocalInjector` sends signals to the processes of a local pool, which it finds in the state directory.
:class:`CommandInjector` runs commands of the operator, for other pools. :meth:`FaultInjector.undo` undoes what no
supervisor undoes; it may be called at any time and more than once.
"""

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import HELD_FILE, Layout, hold, read_processes
from understudy.deploy.local.site_networks import inside

COMMAND_TIMEOUT = 120.0


class FaultInjector(Protocol):
    """Injects faults and undoes them. A target is a member, a control server or an endpoint of etcd."""

    async def kill(self, name: str) -> None:
        """Kill it without a warning. A supervisor starts it again."""

    async def kill_part(self, member: str, part: str) -> None:
        """Kill one process of a member, ``app`` or ``sidecar``, and keep it down until :meth:`undo`."""

    async def kill_site(self, site: str, members: Sequence[str]) -> None:
        """Kill all of a site at once: its members, and what else runs there. A supervisor starts it again."""

    async def kill_all(self, sites: str, members: Sequence[str]) -> None:
        """Kill all members, control servers and members of etcd at once. A supervisor starts them again."""

    async def keep_away(self, name: str) -> None:
        """Kill it, and keep it down until :meth:`undo`."""

    async def kill_home(self, site: str) -> None:
        """Kill everything of a distant site, and keep it down until :meth:`undo`."""

    async def freeze(self, name: str) -> None:
        """Freeze it until :meth:`undo`."""

    async def cut(self, source: str, target: str) -> None:
        """Lose what a site sends to another, until :meth:`undo`."""

    async def cut_without(self, witness: str, source: str, target: str) -> None:
        """Lose what two sites send to each other, and keep the witness down, until :meth:`undo`."""

    async def restart(self, name: str) -> None:
        """Stop a drained member. A supervisor starts it again."""

    async def undo(self) -> None:
        """Undo what does not recover by itself."""


class LocalInjector:
    """Sends signals to processes of the local pool in ``directory``. Its supervisor restarts processes that end."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self._directory = directory
        self._layout = layout
        self._frozen: list[int] = []
        self._cuts: list[list[str]] = []
        self._held: Path | None = None

    async def kill(self, name: str) -> None:
        """Send SIGKILL to all its processes."""
        self._signal(self._pids(name), signal.SIGKILL)

    async def kill_part(self, member: str, part: str) -> None:
        """Send SIGKILL to this process. Its supervisor does not start it again while this one lives."""
        await self.keep_away(f"{member}/{part}")

    async def kill_all(self, sites: str, members: Sequence[str]) -> None:  # noqa: ARG002 - all there are
        """Send SIGKILL to all processes but the front Envoys."""
        names = [*members, *(control.name for control in self._layout.controls), *self._layout.etcd]
        self._signal([pid for name in names for pid in self._pids(name)], signal.SIGKILL)

    async def keep_away(self, name: str) -> None:
        """Send SIGKILL to its process. Its supervisor does not start it again while this process lives."""
        found = self._found(name)
        self._hold(*found)
        self._signal(list(found.values()), signal.SIGKILL)

    async def kill_site(self, site: str, members: Sequence[str]) -> None:
        """Send SIGKILL to all processes of its members, its control servers and its members of etcd."""
        layout = self._layout
        names = [*members, *(control.name for control in layout.controls if control.site == site)]
        names += [url for url, where in zip(layout.etcd, layout.etcd_sites, strict=False) if where == site]
        self._signal([pid for name in names for pid in self._pids(name)], signal.SIGKILL)

    async def kill_home(self, site: str) -> None:  # noqa: ARG002 - a site is a pool of its own here
        """Send SIGKILL to all processes of the pool. Its supervisor does not start them again while this one lives."""
        rows = read_processes(self._directory)
        pids = [pid for row in rows for pid in self._pids(row["name"])]
        self._hold()
        self._signal(pids, signal.SIGKILL)

    async def freeze(self, name: str) -> None:
        """Send SIGSTOP to all its processes."""
        pids = self._pids(name)
        self._frozen += pids
        self._signal(pids, signal.SIGSTOP)

    async def cut(self, source: str, target: str) -> None:
        """Drop the packets of a site where they arrive, in the network of the other site."""
        networks = {network.site: network for network in self._layout.networks}
        if source not in networks or target not in networks:
            raise DeployError(
                "the sites of this pool have no networks that could be cut: start it with 'understudy up --sites "
                "... --links', or give --command and --undo"
            )
        rule = ["INPUT", "-s", networks[source].address, "-j", "DROP"]
        words = [*inside(networks[target].namespace), "iptables", "-w"]
        self._cuts.append([*words, "-D", *rule])
        try:
            await run_command([*words, "-A", *rule])
        except DeployError:
            self._cuts.pop()
            raise

    async def cut_without(self, witness: str, source: str, target: str) -> None:
        """Drop the packets of both directions, and kill the witness."""
        await self.cut(source, target)
        await self.cut(target, source)
        await self.keep_away(witness)

    async def restart(self, name: str) -> None:
        """Send SIGTERM to all its processes."""
        self._signal(self._pids(name), signal.SIGTERM)

    async def undo(self) -> None:
        """Send SIGCONT to all frozen processes, mend all cuts, and let what was killed start again."""
        if self._held is not None:
            self._held.unlink(missing_ok=True)
        while self._cuts:
            await run_command(self._cuts[-1])
            self._cuts.pop()
        while self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._frozen.pop(), signal.SIGCONT)

    def _hold(self, *names: str) -> None:
        """Let no process start again, or none of these, until :meth:`undo`."""
        self._held = self._directory / HELD_FILE
        hold(self._directory, names)

    def _pids(self, name: str) -> list[int]:
        """The process ids of :meth:`_found`."""
        return list(self._found(name).values())

    def _found(self, name: str) -> dict[str, int]:
        """The process ids, by name, of a member (application and sidecar), a control server or an etcd endpoint.

        Raises:
            DeployError: one does not run, or the file is old and the id may belong to another process.
        """
        addresses = [url.partition("://")[2] for url in self._layout.etcd]
        etcds = dict(zip(addresses, self._layout.etcd_names, strict=True))
        wanted = {name, f"{name}/app", f"{name}/sidecar", etcds.get(name.partition("://")[2] or name, name)}
        found = running_pids(self._directory, self._layout, wanted)
        if not found:
            raise DeployError(f"the local pool in {self._directory} has no process of {name}: see 'understudy status'")
        return found

    def _signal(self, pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def running_pids(directory: Path, layout: Layout, names: Collection[str]) -> dict[str, int]:
    """The ids, by name, of those of these processes that the local pool in ``directory`` has.

    Raises:
        DeployError: one does not run, or the file is old and the id may belong to another process.
    """
    found = [row for row in read_processes(directory) if row["name"] in names]
    for row in found:
        if row["state"] != "running" or _parent(row["pid"]) != layout.pid:
            raise DeployError(f"{row['name']} does not run under the pool in {directory}: see 'understudy status'")
    return {row["name"]: row["pid"] for row in found}


class CommandInjector:
    """Runs commands of the operator; ``{name}`` in them is replaced by the target.

    For a cut link ``{from}`` and ``{to}`` are replaced by the sites, and the command runs once for each direction;
    if the witness is to be away too, it runs once.
    When the drill is over or interrupted, ``undo`` runs once for each target of ``command``. It may be empty if the
    platform restarts the target by itself.
    """

    def __init__(self, command: str, undo: str = "") -> None:
        self._command = command
        self._undo_command = undo
        self._targets: list[Mapping[str, str]] = []

    async def kill(self, name: str) -> None:
        """Run the command."""
        await self._run({"name": name})

    async def kill_part(self, member: str, part: str) -> None:  # noqa: ARG002 - the command knows the part
        """Run the command for the member."""
        await self.kill(member)

    async def kill_site(self, site: str, members: Sequence[str]) -> None:  # noqa: ARG002 - the command knows them
        """Run the command once, for the site."""
        await self.kill(site)

    async def kill_all(self, sites: str, members: Sequence[str]) -> None:  # noqa: ARG002 - the command knows them
        """Run the command once, for all sites."""
        await self.kill(sites)

    async def keep_away(self, name: str) -> None:
        """Run the command."""
        await self.kill(name)

    async def kill_home(self, site: str) -> None:
        """Run the command for the site."""
        await self.kill(site)

    async def freeze(self, name: str) -> None:
        """Run the command."""
        await self.kill(name)

    async def cut(self, source: str, target: str) -> None:
        """Run the command for one direction."""
        await self._run({"from": source, "to": target})

    async def cut_without(self, witness: str, source: str, target: str) -> None:  # noqa: ARG002 - the command knows it
        """Run the command once: it cuts both directions, and takes the witness away."""
        await self._run({"from": source, "to": target})

    async def restart(self, name: str) -> None:
        """Run the command."""
        await self.kill(name)

    async def undo(self) -> None:
        """Run the undo command for each target."""
        targets, self._targets = self._targets, []
        for values in targets if self._undo_command else ():
            await run_template(self._undo_command, values)

    async def _run(self, values: Mapping[str, str]) -> None:
        self._targets.append(values)
        await run_template(self._command, values)


def template_arguments(template: str, values: Mapping[str, str]) -> list[str]:
    """The command line of a template. Each value stays inside one argument. Raises :class:`DeployError`."""
    try:
        return [part.format_map(values) for part in shlex.split(template)]
    except (ValueError, KeyError, IndexError) as error:
        known = " and ".join(f"{{{name}}}" for name in values)
        raise DeployError(f"{template!r} is not a command: {error}; the only placeholder is {known}") from None


async def run_template(template: str, values: Mapping[str, str]) -> None:
    """Run the command of a template. Raises :class:`DeployError` if it fails or takes too long."""
    await run_command(template_arguments(template, values))


async def run_command(arguments: Sequence[str]) -> None:
    """Run a command. Raises :class:`DeployError` if it fails or takes too long."""
    try:
        child = await asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.DEVNULL)
    except (OSError, IndexError, TypeError) as error:
        raise DeployError(f"{shlex.join(arguments)!r} cannot be run: {error}") from None
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT):
            code = await child.wait()
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        if isinstance(error, TimeoutError):
            raise DeployError(f"{shlex.join(arguments)} took longer than {COMMAND_TIMEOUT:g} s") from None
        raise
    if code:
        raise DeployError(f"{shlex.join(arguments)} ended with exit code {code}")


def _parent(pid: int) -> int:
    """The parent of a process; 0 if the process does not exist."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
