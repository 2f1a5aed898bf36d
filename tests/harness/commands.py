"""Commands of ``understudy`` as processes of their own, as an operator runs them; all gone with the block."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.harness.forkserver import forked
from tests.harness.waiting import until

ROOT = Path(__file__).parents[2]
_LOG = logging.getLogger(__name__)


class Commands:
    """Running commands by a name that the test gives them; each logs to ``NAME.log`` in ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str, *arguments: str) -> None:
        """Start ``understudy ARGUMENTS``."""
        await self.program(name, sys.executable, "-m", "understudy.deploy.cli", *arguments)

    async def program(self, name: str, *command: str) -> None:
        """Start any program."""
        with (self.home / f"{name}.log").open("ab") as log:
            self._running[name] = await asyncio.create_subprocess_exec(
                *forked(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def log(self, name: str) -> str:
        """What a command wrote so far."""
        return (self.home / f"{name}.log").read_text()

    def tell(self) -> None:
        """Log how each command does and the end of its log."""
        for name, process in self._running.items():
            state = "is running" if process.returncode is None else f"has ended with {process.returncode}"
            _LOG.error("%s %s; its last lines:\n%s", name, state, "\n".join(self.log(name).splitlines()[-15:]))

    async def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run ``understudy ARGUMENTS`` to its end; returns its exit code and its output, errors included."""
        process = await asyncio.create_subprocess_exec(
            *forked([sys.executable, "-m", "understudy.deploy.cli", *arguments]),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200", **variables},
        )
        output, _ = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def kill(self, name: str) -> None:
        """SIGKILL."""
        await self._end(name, signal.SIGKILL)

    async def _end(self, name: str, how: signal.Signals) -> None:
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            await asyncio.wait_for(process.wait(), 15)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def close(self) -> None:
        """End everything, the last started first."""
        for name in reversed(list(self._running)):
            await self._end(name, signal.SIGTERM)


@contextlib.asynccontextmanager
async def commands(home: Path) -> AsyncIterator[Commands]:
    """A place to run commands in; what they logged last is logged if its user fails."""
    running = Commands(home)
    try:
        yield running
    except BaseException:
        running.tell()
        raise
    finally:
        await running.close()


async def ask(address: str, path: str) -> Any:
    """GET from an HTTP interface: the JSON of the answer, or its text if it is none."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}{path}") as answer:
        text = await answer.text()
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text


async def ready(http: str, timeout: float = 60) -> None:
    """Wait until a control server can serve Envoys."""

    async def is_ready() -> bool:
        return (await ask(http, "/v1/status"))["ready"]

    await until(is_ready, timeout, f"the control server at {http} is ready")
