"""The checks that the sidecar itself runs for the pool's spec: an HTTP request, or a command on this host.

Each check has a task; a change of the spec starts and ends them. Commands run only if the sidecar was started with
``--allow-command-checks``: otherwise everybody who may write the spec could run anything here.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

import aiohttp

from understudy.proxy.health.check_registry import CheckRegistry, CheckState
from understudy.statesync.pool.spec_parts import CheckSpec

logger = logging.getLogger(__name__)

SOURCE = "spec"
POLL_INTERVAL = 0.5
SAID_MOST = 200


class SpecChecks:
    """Runs the checks of a spec and reports what they find to the registry."""

    def __init__(self, book: CheckRegistry, on_change: Callable[[], None], *, commands: bool) -> None:
        self._book = book
        self._on_change = on_change
        self._commands = commands
        self._tasks: dict[CheckSpec, asyncio.Task[None]] = {}

    async def run(self, wanted: Callable[[], Sequence[CheckSpec]]) -> None:
        """Run the checks that ``wanted`` names, as they are every half second, until cancelled."""
        async with aiohttp.ClientSession() as http:
            try:
                while True:
                    self._follow(wanted(), http)
                    await asyncio.sleep(POLL_INTERVAL)
            finally:
                for task in self._tasks.values():
                    task.cancel()
                await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def unbegun(self, wanted: Sequence[CheckSpec]) -> str:
        """Which of the ``wanted`` checks has not begun, '' for none."""
        return next(
            (f"check {check.name}: not begun" for check in self._runnable(wanted) if check not in self._tasks), ""
        )

    def _runnable(self, wanted: Sequence[CheckSpec]) -> list[CheckSpec]:
        return [check for check in wanted if self._commands or not check.command]

    def _follow(self, wanted: Sequence[CheckSpec], http: aiohttp.ClientSession) -> None:
        runnable = self._runnable(wanted)
        for check in self._tasks.keys() - set(runnable):
            self._tasks.pop(check).cancel()
            with contextlib.suppress(KeyError):
                self._book.remove(check.name)
            self._on_change()
        for check in runnable:
            if check not in self._tasks:
                deadline = check.failures * (check.every_seconds + check.timeout_seconds) + POLL_INTERVAL
                self._book.register(check.name, deadline, SOURCE, time.monotonic())
                self._tasks[check] = asyncio.create_task(self._repeat(check, http), name=f"check {check.name}")
                self._on_change()

    async def _repeat(self, check: CheckSpec, http: aiohttp.ClientSession) -> None:
        failed = 0
        while True:
            try:
                async with asyncio.timeout(check.timeout_seconds):
                    fault = await (_asked(http, check.http) if check.http else _carried_out(check.command))
            except TimeoutError:
                fault = f"no result within {check.timeout_seconds:g} s"
            failed = failed + 1 if fault else 0
            known = self._book.checks[check.name]
            if not fault or failed >= check.failures:
                state = CheckState.PROBLEM if fault else CheckState.OK
                self._book.report(check.name, state, fault, time.monotonic())
            else:
                self._book.report(check.name, known.state, known.reason, time.monotonic())
            if self._book.checks[check.name].state is not known.state:
                self._on_change()
            await asyncio.sleep(check.every_seconds)


async def _asked(http: aiohttp.ClientSession, url: str) -> str:
    """What is wrong with the answer at ``url``, '' for nothing."""
    try:
        async with http.get(url, allow_redirects=False) as answer:
            return "" if answer.status < 400 else f"{url} answers {answer.status}"
    except aiohttp.ClientError as error:
        return f"{url}: {error}"


async def _carried_out(command: Sequence[str]) -> str:
    """What is wrong by a command's exit code, with the last line of its output; '' for nothing."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if not process.returncode:
        return ""
    last = (said.decode(errors="replace").strip().splitlines() or [""])[-1][:SAID_MOST]
    return f"{command[0]} ended with {process.returncode}" + (f": {last}" if last else "")
