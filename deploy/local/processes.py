"""Runs the operating system processes of a local pool and keeps them running.

Each program gets a session of its own (a Ctrl-C at the terminal reaches only the parent, which stops the
rest in order), a log file, and the kernel's promise to end with its parent (``understudy.proxy.front.pdeathsig``). What
dies is started again after a growing delay, and the reason of its death is kept for whoever asks; what was killed
on purpose stays down until it is started again. Which programs make a pool is told by ``local_pool``.
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

from understudy.deploy.common.errors import NotReadyError, StartError
from understudy.proxy.front.pdeathsig import tethered
from understudy.proxy.front.process_util import LONGEST_DELAY, STEADY_AFTER, describe_exit
from understudy.statesync.pool.addresses import split_address
from understudy.telemetry.timing.backoff import Backoff

FIRST_DELAY = 0.2
START_PATIENCE = 60.0
"""Seconds within which a program must be ready: many, for a machine that has much to do. What ends is told at once."""
REFUSAL_PATIENCE = 3.0
"""Seconds for which a program may answer its health URL with 4xx. It runs by then, and has no such path."""
_POLL = 0.05
_QUESTION_PATIENCE = 1.0


class State(StrEnum):
    """What a process is doing."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "restarting"
    KILLED = "killed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, by absolute path. Higher stages stop earlier; ``health``: URL that answers 200 when ready.

    Or ``tcp://host:port``, which is ready when somebody listens there.
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
    """A program's present state. ``reason``: why it last ended; ``since``: wall time of the last change.

    ``log_from`` is how long its log was before it was started, ``unready`` what was found when it was last asked
    whether it is ready, and ``refused`` that it answers, but says no for good.
    """

    program: Program
    state: State = State.STOPPED
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
    def last_words(self) -> str:
        """The last line that this life of the program wrote to its log; '' if it wrote none."""
        return last_line(self.program.log, self.log_from)

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


def last_line(log: Path, since: int = 0) -> str:
    """The last line of a log, from byte ``since`` on, that says something; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Processes:
    """A set of supervised programs. Use as an async context manager: leaving it stops everything."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._all: dict[str, Process] = {}
        self._on_change = on_change
        self._http: aiohttp.ClientSession | None = None
        self._stopping = False

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_QUESTION_PATIENCE))
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

    async def start(self, *programs: Program, timeout: float = START_PATIENCE) -> None:
        """Start programs together and wait until all are ready; see :meth:`ready`."""
        self.launch(*programs)
        await self.ready(*(program.name for program in programs), timeout=timeout)

    def launch(self, *programs: Program) -> None:
        """Start programs and wait for nothing."""
        for program in programs:
            process = self._all.setdefault(program.name, Process(program))
            process.program = program
            self._launch(process)

    async def ready(
        self, *names: str, timeout: float = START_PATIENCE, after: "asyncio.Future[None] | None" = None
    ) -> None:
        """Wait until all the named programs are ready. Their time begins when ``after`` is done, if it is given.

        Raises:
            StartError: one ended, or could not be run.
            NotReadyError: one was not ready in time, or answered for a while that it will not be. The others keep
                running until :meth:`stop`.
        """
        await asyncio.gather(*(self._until_ready(self._all[name], timeout, after) for name in names))

    async def start_again(self, *names: str, timeout: float = START_PATIENCE) -> None:
        """Start programs that were killed on purpose; see :meth:`start`."""
        await self.start(*(self._all[name].program for name in names), timeout=timeout)

    def kill(self, *names: str) -> None:
        """``kill -9`` the named processes, one right after the other, and leave them down."""
        victims = [self._all[name] for name in names]
        for process in victims:
            self._set(process, State.KILLED, "killed on purpose")
        for process in victims:
            _signal(process.pid, signal.SIGKILL)

    async def end(self, *names: str) -> None:
        """Ask the named processes to end (SIGTERM), wait for it, and leave them down; see :meth:`stop`."""
        victims = [self._all[name] for name in names]
        for process in victims:
            self._set(process, State.KILLED, "ended on purpose")
        await asyncio.gather(*(self._stop_one(process) for process in victims))

    async def stop(self) -> None:
        """Stop everything, the last stage first; what does not end within its grace is killed."""
        self._stopping = True
        by_stage = sorted(self._all.values(), key=lambda process: -process.program.stage)
        for _, stage in groupby(by_stage, key=lambda process: process.program.stage):
            await asyncio.gather(*(self._stop_one(process) for process in stage))

    def _launch(self, process: Process) -> None:
        process.unready, process.refused = "", False
        self._set(process, State.STARTING, process.reason)
        process.task = asyncio.create_task(self._supervise(process), name=f"supervise {process.name}")

    async def _supervise(self, process: Process) -> None:
        backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
        while True:
            born = time.monotonic()
            reason = await self._live_once(process)
            process.pid = 0
            if process.state is State.KILLED or self._stopping:
                self._set(process, process.state if process.state is State.KILLED else State.STOPPED, "")
                return
            if time.monotonic() - born > STEADY_AFTER:
                backoff.reset()
            self._set(process, State.WAITING, reason)
            await asyncio.sleep(backoff.next())
            process.restarts += 1
            self._set(process, State.STARTING, reason)

    async def _live_once(self, process: Process) -> str:
        """Run the program to its end; returns why it ended, or why it could not be run."""
        program = process.program
        try:
            child = await self._spawn(process)
        except OSError as error:
            return f"cannot be run: {error.filename or program.command[0]}: {error.strerror or error}"
        process.pid = child.pid
        readiness = asyncio.create_task(self._watch_readiness(process))
        try:
            code = await child.wait()
            words = process.last_words
            return describe_exit(code, words) + (f"; its last output was: {words}" if words and not code else "")
        finally:
            readiness.cancel()
            if child.returncode is None:  # the supervision itself was cancelled
                _signal(child.pid, signal.SIGKILL)
                await child.wait()
            _kill_group(child.pid)

    @staticmethod
    async def _spawn(process: Process) -> asyncio.subprocess.Process:
        program = process.program
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
            process.unready, refused = await self._question(process.program.health)
            if not process.unready:
                break
            now = time.monotonic()
            refused_since = (refused_since or now) if refused else 0.0
            if refused_since and now - refused_since >= REFUSAL_PATIENCE and not process.refused:
                process.refused = True
                process.tell()
            await asyncio.sleep(_POLL)
        if process.state is State.STARTING:
            self._set(process, State.RUNNING, process.reason)

    async def _question(self, url: str) -> tuple[str, bool]:
        """Ask whether a program is ready: '' if so, else what was found; and whether it said no for good (4xx)."""
        if not url or self._http is None:
            return "", False
        where = url.split("/")[2]
        try:
            if url.startswith("tcp://"):
                _, writer = await asyncio.open_connection(*split_address(where))
                writer.close()
                return "", False
            async with self._http.get(url) as response:
                told = "" if response.status == 200 else f"it answered {response.status} at {url}"
                return told, 400 <= response.status < 500
        except TimeoutError:
            return f"it did not answer {url} within {_QUESTION_PATIENCE:g} s", False
        except OSError:  # aiohttp's errors of connecting are such as well
            return f"nothing listens at {where}", False
        except aiohttp.ClientError as error:
            return f"what it answered at {url} is not HTTP ({type(error).__name__})", False

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
            detail = f"was not ready after {timeout:g} s: {process.unready or 'it was not asked yet'}"
            raise NotReadyError(process.name, f"{detail}; {_so_far(process)}", str(process.program.log)) from None

    async def _ready_or_ended(self, process: Process) -> None:
        log = str(process.program.log)
        while process.state is not State.RUNNING:
            if process.state in (State.WAITING, State.STOPPED, State.KILLED):
                reason = process.reason or "was stopped"
                raise StartError(process.name, f"ended with {reason}" if reason.startswith("exit") else reason, log)
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
        self._set(process, State.STOPPED, process.reason)

    def _set(self, process: Process, state: State, reason: str) -> None:
        process.state, process.reason, process.since = state, reason, time.time()
        process.tell()
        self._on_change()


def _so_far(process: Process) -> str:
    words = process.last_words
    return "its process still runs" + (f", and its last output was: {words}" if words else " and has printed nothing")


def as_json(processes: Iterable[Process]) -> list[dict[str, object]]:
    """The processes' state for status files and ``-o json``."""
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
    """End what a dead leader left behind in its group (children that it started)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
