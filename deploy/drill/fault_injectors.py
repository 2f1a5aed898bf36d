"""The hands of a drill: they break a part of a pool, and mend it.

:class:`LocalHands` signals processes of a pool that ``understudy up`` runs, found in its state directory;
:class:`CommandHands` runs commands that the operator gives, for pools elsewhere. What was broken and is not mended by
a supervisor is mended by :meth:`Hands.mend`, which may be called at any time and more than once.
"""

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import Layout, read_processes

COMMAND_PATIENCE = 120.0


class Hands(Protocol):
    """Break and mend. Names are of members, of control servers, or endpoints of etcd."""

    async def kill(self, name: str) -> None:
        """End it without a chance to say goodbye; somebody starts it again."""

    async def freeze(self, name: str) -> None:
        """Stop it from running, until :meth:`mend`."""

    async def restart(self, name: str) -> None:
        """Have a drained member end and start again."""

    async def mend(self) -> None:
        """Undo whatever does not come back by itself."""


class LocalHands:
    """Signals to processes of the local pool in ``directory``, whose supervisor starts again what ends."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self._directory = directory
        self._layout = layout
        self._frozen: list[int] = []

    async def kill(self, name: str) -> None:
        """SIGKILL to all its processes, one right after the other."""
        self._signal(self._pids(name), signal.SIGKILL)

    async def freeze(self, name: str) -> None:
        """SIGSTOP to all its processes."""
        pids = self._pids(name)
        self._frozen += pids
        self._signal(pids, signal.SIGSTOP)

    async def restart(self, name: str) -> None:
        """SIGTERM to all its processes."""
        self._signal(self._pids(name), signal.SIGTERM)

    async def mend(self) -> None:
        """SIGCONT to what was frozen."""
        while self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._frozen.pop(), signal.SIGCONT)

    def _pids(self, name: str) -> list[int]:
        """The processes of a member (application and sidecar), a control server, or an etcd endpoint.

        Raises:
            DeployError: one does not run, or the note is old and the number belongs to somebody else by now.
        """
        addresses = [url.partition("://")[2] for url in self._layout.etcd]
        etcds = dict(zip(addresses, self._layout.etcd_names, strict=True))
        wanted = {name, f"{name}/app", f"{name}/sidecar", etcds.get(name.partition("://")[2] or name, name)}
        noted = {row["name"]: row for row in read_processes(self._directory) if row["name"] in wanted}
        if not noted:
            raise DeployError(f"the local pool in {self._directory} has no process of {name}: see 'understudy status'")
        for process, row in noted.items():
            if row["state"] != "running" or _parent(row["pid"]) != self._layout.pid:
                raise DeployError(
                    f"{process} does not run under the pool in {self._directory}: see 'understudy status'"
                )
        return [row["pid"] for row in noted.values()]

    def _signal(self, pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class CommandHands:
    """Commands of the operator; ``{name}`` in them becomes what the drill is about.

    ``undo`` is run for whatever ``command`` was run for, once, when the drill is over or interrupted. It may be empty
    where the platform restores a killed or restarted part by itself.
    """

    def __init__(self, command: str, undo: str = "") -> None:
        self._command = command
        self._undo = undo
        self._struck: list[str] = []

    async def kill(self, name: str) -> None:
        """Run the command."""
        self._struck.append(name)
        await run_template(self._command, {"name": name})

    async def freeze(self, name: str) -> None:
        """Run the command."""
        await self.kill(name)

    async def restart(self, name: str) -> None:
        """Run the command."""
        await self.kill(name)

    async def mend(self) -> None:
        """Run the undo command for each that was struck."""
        struck, self._struck = self._struck, []
        for name in struck if self._undo else ():
            await run_template(self._undo, {"name": name})


def template_arguments(template: str, values: Mapping[str, str]) -> list[str]:
    """The command line of a template, each value within one argument whatever it holds; raises :class:`DeployError`."""
    try:
        return [part.format_map(values) for part in shlex.split(template)]
    except (ValueError, KeyError, IndexError) as error:
        raise DeployError(f"{template!r} is no command: {error}; the only placeholder is {{name}}") from None


async def run_template(template: str, values: Mapping[str, str]) -> None:
    """Run a command to its end; raises :class:`DeployError` when it fails or takes too long."""
    arguments = template_arguments(template, values)
    try:
        child = await asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.DEVNULL)
    except (OSError, IndexError, TypeError) as error:
        raise DeployError(f"{template!r} cannot be run: {error}") from None
    try:
        code = await asyncio.wait_for(child.wait(), COMMAND_PATIENCE)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        if isinstance(error, TimeoutError):
            raise DeployError(f"{shlex.join(arguments)} took longer than {COMMAND_PATIENCE:g} s") from None
        raise
    if code:
        raise DeployError(f"{shlex.join(arguments)} ended with exit code {code}")


def _parent(pid: int) -> int:
    """The parent of a process; 0 if there is none (any more)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
