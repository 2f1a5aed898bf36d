"""Runs the processes of a local pool and restarts those that end.

Each program has its own session, so Ctrl-C reaches only the parent, which stops the others in order. It has a log
file, and the kernel kills it when its parent ends (``understudy.proxy.front.pdeathsig``). A process that ends is
started again after a growing delay, and the reason of its end is kept. A process that was killed on purpose stays down
until it is started again. ``local_pool`` says which programs make a pool.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Self

import aiohttp

from understudy.deploy.common.errors import NotReadyError, ProcessStartError
from understudy.proxy.front.pdeathsig import tethered
from understudy.proxy.front.process_util import LONGEST_DELAY, STEADY_AFTER, describe_exit
from understudy.statesync.pool.addresses import split_address
from understudy.telemetry.timing.backoff import Backoff

FIRST_DELAY = 0.2
START_TIMEOUT = 60.0
"""Seconds for a program to become ready: many, for a busy machine. A program that ends is reported at once."""
REFUSAL_TIMEOUT = 3.0
"""Seconds for which a program may answer its health URL with 4xx. After that, it probably has no such path."""
POLL_INTERVAL = 0.05
PROBE_TIMEOUT = 1.0


class ProcessState(StrEnum):
    """The state of a process."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "restarting"
    KILLED = "killed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run, by absolute path. Programs of a higher stage stop earlier.

    ``health`` is a URL that answers 200 when the program is ready, or ``tcp://host:port``, which then accepts
    connections. ``grace`` is the number of seconds between SIGTERM and SIGKILL.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    stage: int
    env: Mapping[str, str] = field(default_factory=dict)
    health: str = ""
    grace: float = 6.0


@dataclass(slots=True)
class Process:
    """The state of a program. ``reason``: why it last ended; ``since``: wall time of the last change.

    ``log_from`` is the size of its log before its start. ``unready`` is the result of the last readiness probe.
    ``refused``: it answers probes with 4xx.
    """

    program: Program
    state: ProcessState = ProcessState.STOPPED
    pid: int = 0
    restarts: int = 0
    reason: str = ""
    since: float = 0.0
    log_from: int = 0
    unready: str = ""
    refused: bool = False
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    @property
    def last_output(self) -> str:
        """The last line in the log since the last start; '' if there is none."""
        return last_line(self.program.log, self.log_from)

    def notify(self) -> None:
        """Wake the tasks that wait for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


def last_line(log: Path, since: int = 0) -> str:
    """The last non-empty line of a log after byte ``since``; '' if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Processes:
    """A set of supervised programs. Use as an async context manager: leaving it stops everything.

    ``placed`` changes a program before each start, such as to run it in another network. While ``held`` is true of a
    program's name, it is not started.
    """

    def __init__(
        self,
        on_change: Callable[[], None] = lambda: None,
        placed: Callable[[Program], Program] = lambda program: program,
        held: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._all: dict[str, Process] = {}
        self._on_change = on_change
        self._placed = placed
        self._held = held
        self._http: aiohttp.ClientSession | None = None
        self._stopping = False

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT))
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.stop()
        finally:
            if self._http is not None:
                await self._http.close()

    @property
    def all(self) -> tuple[Process, ...]:
        """All processes, in the order in which they were started."""
        return tuple(self._all.values())

    def __getitem__(self, name: str) -> Process:
        return self._all[name]

    async def start(self, *programs: Program, timeout: float = START_TIMEOUT) -> None:
        """Start programs together and wait until all are ready; see :meth:`ready`."""
        self.launch(*programs)
        await self.ready(*(program.name for program in programs), timeout=timeout)

    def launch(self, *programs: Program) -> None:
        """Start programs without waiting."""
        for program in programs:
            process = self._all.setdefault(program.name, Process(program))
            process.program = program
            self._launch(process)

    async def ready(
        self, *names: str, timeout: float = START_TIMEOUT, after: "asyncio.Future[None] | None" = None
    ) -> None:
        """Wait until all the named programs are ready. Their time starts when ``after`` is done, if it is given.

        Raises:
            ProcessStartError: one ended, or could not be run.
            NotReadyError: one was not ready in time, or answered its probes with 4xx. The others keep running until
                :meth:`stop`.
        """
        await asyncio.gather(*(self._until_ready(self._all[name], timeout, after) for name in names))

    async def start_again(self, *names: str, timeout: float = START_TIMEOUT) -> None:
        """Start programs that were killed on purpose, as soon as their processes have ended; see :meth:`start`."""
        ending = {task for name in names if (task := self._all[name].task) is not None}
        if ending:
            await asyncio.wait(ending)
        await self.start(*(self._all[name].program for name in names), timeout=timeout)

    def kill(self, *names: str) -> None:
        """Send SIGKILL to the named processes, and do not restart them."""
        victims = [self._all[name] for name in names]
        for process in victims:
            self._set(process, ProcessState.KILLED, "killed on purpose")
        for process in victims:
            _signal(process.pid, signal.SIGKILL)

    async def terminate(self, *names: str) -> None:
        """Send SIGTERM to the named processes, wait for their end, and do not restart them; see :meth:`stop`."""
        victims = [self._all[name] for name in names]
        for process in victims:
            self._set(process, ProcessState.KILLED, "ended on purpose")
        await asyncio.gather(*(self._stop_one(process) for process in victims))

    async def stop(self) -> None:
        """Stop all processes, the last stage first. A process that does not end within its grace is killed."""
        self._stopping = True
        by_stage = sorted(self._all.values(), key=lambda process: -process.program.stage)
        for _, stage in groupby(by_stage, key=lambda process: process.program.stage):
            await asyncio.gather(*(self._stop_one(process) for process in stage))

    def _launch(self, process: Process) -> None:
        process.unready, process.refused = "", False
        self._set(process, ProcessState.STARTING, process.reason)
        process.task = asyncio.create_task(self._supervise(process), name=f"supervise {process.name}")

    async def _supervise(self, process: Process) -> None:
        backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
        while True:
            while self._held(process.name):  # noqa: ASYNC110 - a file of another process
                await asyncio.sleep(POLL_INTERVAL)
            if process.state is ProcessState.WAITING:
                process.restarts += 1
                self._set(process, ProcessState.STARTING, process.reason)
            born = time.monotonic()
            reason = await self._run_once(process)
            process.pid = 0
            if process.state is ProcessState.KILLED or self._stopping:
                self._set(process, process.state if process.state is ProcessState.KILLED else ProcessState.STOPPED, "")
                return
            if time.monotonic() - born > STEADY_AFTER:
                backoff.reset()
            self._set(process, ProcessState.WAITING, reason)
            await asyncio.sleep(backoff.next())

    async def _run_once(self, process: Process) -> str:
        """Run the program until it ends. Returns why it ended, or why it could not be run."""
        program = process.program
        try:
            child = await self._spawn(process)
        except OSError as error:
            return f"cannot be run: {error.filename or program.command[0]}: {error.strerror or error}"
        process.pid = child.pid
        readiness = asyncio.create_task(self._watch_readiness(process))
        try:
            code = await child.wait()
            words = process.last_output
            return describe_exit(code, words) + (f"; its last output was: {words}" if words and not code else "")
        finally:
            readiness.cancel()
            if child.returncode is None:  # this task was cancelled
                _signal(child.pid, signal.SIGKILL)
                await child.wait()
            _kill_group(child.pid)

    async def _spawn(self, process: Process) -> asyncio.subprocess.Process:
        program = self._placed(process.program)
        program.log.parent.mkdir(parents=True, exist_ok=True)
        with program.log.open("ab") as log:
            process.log_from = log.tell()
            return await asyncio.create_subprocess_exec(
                *tethered(Path(program.command[0]), *program.command[1:]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **program.env},
                start_new_session=True,
            )

    async def _watch_readiness(self, process: Process) -> None:
        refused_since = 0.0
        while True:
            process.unready, refused = await self._probe(process.program.health)
            if not process.unready:
                break
            now = time.monotonic()
            refused_since = (refused_since or now) if refused else 0.0
            if refused_since and now - refused_since >= REFUSAL_TIMEOUT and not process.refused:
                process.refused = True
                process.notify()
            await asyncio.sleep(POLL_INTERVAL)
        if process.state is ProcessState.STARTING:
            self._set(process, ProcessState.RUNNING, process.reason)

    async def _probe(self, url: str) -> tuple[str, bool]:
        """Probe whether a program is ready: '' if so, else the reason; and whether it answered 4xx."""
        if not url or self._http is None:
            return "", False
        where = url.split("/")[2]
        try:
            if url.startswith("tcp://"):
                _, writer = await asyncio.open_connection(*split_address(where))
                writer.close()
                return "", False
            async with self._http.get(url) as response:
                reason = "" if response.status == 200 else f"it answered {response.status} at {url}"
                return reason, 400 <= response.status < 500
        except TimeoutError:
            return f"it did not answer {url} within {PROBE_TIMEOUT:g} s", False
        except OSError:  # includes connection errors of aiohttp
            return f"nothing listens at {where}", False
        except aiohttp.ClientError as error:
            return f"its answer at {url} is not HTTP ({type(error).__name__})", False

    async def _until_ready(self, process: Process, timeout: float, after: "asyncio.Future[None] | None") -> None:
        def begin(_: object = None) -> None:
            bound.reschedule(asyncio.get_running_loop().time() + timeout)

        try:
            async with asyncio.timeout(None) as bound:
                if after is None:
                    begin()
                else:
                    after.add_done_callback(begin)
                try:
                    await self._ready_or_ended(process)
                finally:
                    if after is not None:
                        after.remove_done_callback(begin)
        except TimeoutError:
            detail = f"was not ready after {timeout:g} s: {process.unready or 'it was not probed yet'}"
            raise NotReadyError(process.name, f"{detail}; {_so_far(process)}", str(process.program.log)) from None

    async def _ready_or_ended(self, process: Process) -> None:
        log = str(process.program.log)
        while process.state is not ProcessState.RUNNING:
            if process.state in (ProcessState.WAITING, ProcessState.STOPPED, ProcessState.KILLED):
                reason = process.reason or "was stopped"
                raise ProcessStartError(
                    process.name, f"ended with {reason}" if reason.startswith("exit") else reason, log
                )
            if process.refused:
                detail = f"runs, but is not ready: {process.unready}"
                raise NotReadyError(process.name, detail, log, refused=True)
            await process.changed.wait()

    async def _stop_one(self, process: Process) -> None:
        task = process.task
        if task is None or task.done():
            return
        if process.pid:
            _signal(process.pid, signal.SIGTERM)
        else:
            task.cancel()
        done, _ = await asyncio.wait({task}, timeout=process.program.grace)
        if not done:
            _signal(process.pid, signal.SIGKILL)
            _kill_group(process.pid)
            await asyncio.wait({task}, timeout=2.0)
        self._set(process, ProcessState.STOPPED, process.reason)

    def _set(self, process: Process, state: ProcessState, reason: str) -> None:
        process.state, process.reason, process.since = state, reason, time.time()
        process.notify()
        self._on_change()


def _so_far(process: Process) -> str:
    words = process.last_output
    return "its process still runs" + (f", and its last output was: {words}" if words else " and has printed nothing")


def as_json(processes: Iterable[Process]) -> list[dict[str, object]]:
    """The state of processes for status files and ``-o json``."""
    return [
        {
            "name": process.name,
            "state": str(process.state),
            "pid": process.pid,
            "restarts": process.restarts,
            "since": round(process.since, 3),
            "reason": process.reason,
            "log": str(process.program.log),
        }
        for process in processes
    ]


def _signal(pid: int, number: signal.Signals) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill_group(pid: int) -> None:
    """Kill the children that a process has left in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
