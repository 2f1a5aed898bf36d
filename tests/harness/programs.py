"""A process as tests handle it: started, stopped for a while, killed, started again."""

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.forkserver import forked
from tests.harness.places import ROOT
from tests.harness.waiting import until


@dataclass(eq=False)
class Program:
    """A process by its command, which ends with the test process. Its log goes on over restarts.

    Without a ``log`` its output is the test's. ``environment`` is added to the test's own. A ``piped`` program answers
    lines that the test says with lines.
    """

    name: str
    command: list[str]
    log: Path | None
    environment: dict[str, str] = field(default_factory=dict)
    piped: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, **environment: str) -> None:
        """Start it (again), with these variables besides its usual ones."""
        with self.log.open("ab") if self.log else contextlib.nullcontext() as log:
            self.process = subprocess.Popen(
                forked(self.command),
                stdin=subprocess.PIPE if self.piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.piped else log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **self.environment, **environment},
            )

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of its last start."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``, and wait until it has ended."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    async def ended(self) -> int:
        """Wait until it has ended; returns its exit code."""
        await until(lambda: not self.runs, 120, f"{self.name} ends")
        assert self.process is not None
        return self.process.wait()

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    async def answers(self, line: str) -> None:
        """Wait for this line on its standard output."""
        assert self.process is not None
        assert self.process.stdout is not None
        heard = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), 40)
        assert heard.decode().strip() == line, self.log and self.log.read_text()
