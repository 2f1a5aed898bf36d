"""The example cart with memory that is used up as a pattern says: for ``bench.predictive``.

``BENCH_LIMIT`` are the bytes of its control group. Without a signal the pattern is the noise that ``BENCH_NOISE`` names
for this member; after SIGUSR1 memory is taken, ``BENCH_LEAK`` bytes a second, until the kernel ends the process.
"""

import asyncio
import itertools
import mmap
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator

from aiohttp import web

from tests.proxy.health.noise import ORDINARY
from understudy.deploy.examples.cart import SIDECAR_URL, make_app

CHUNK = 1 << 20
INTERVAL = 0.25
CACHE = "page cache"
"""A pattern besides those of memory: files are written and read, so that the group's page cache fills it."""


class Ballast:
    """Memory that is held: mapped pages that were written to, given back to the kernel at once when they are let go."""

    def __init__(self) -> None:
        self._held: list[mmap.mmap] = []

    def hold(self, size: int) -> None:
        """Hold so many bytes, in whole chunks."""
        while len(self._held) * CHUNK < size:
            pages = mmap.mmap(-1, CHUNK)
            pages.write(b"\1" * CHUNK)
            self._held.append(pages)
        while self._held and (len(self._held) - 1) * CHUNK >= size:
            self._held.pop().close()


async def run_noise(kind: str, seed: int, limit: int) -> None:
    """Use memory as a pattern of ordinary applications does."""
    ballast = Ballast()
    for share, _ in ORDINARY[kind](random.Random(seed)):
        ballast.hold(int(share * limit))
        await asyncio.sleep(1.0)


async def run_cache(limit: int) -> None:
    """Write and read files of twice the limit, over and over."""
    with tempfile.TemporaryFile() as file:
        for number in itertools.count():
            place = number * CHUNK % (2 * limit)
            os.pwrite(file.fileno(), bytes(CHUNK), place)
            os.pread(file.fileno(), CHUNK, place)
            if place == 0:
                os.fdatasync(file.fileno())
            await asyncio.sleep(0.02)


async def run_leak(rate: int) -> None:
    """Take so many bytes a second, until the kernel has no more."""
    ballast = Ballast()
    for size in itertools.count(0, int(rate * INTERVAL)):
        ballast.hold(size)
        await asyncio.sleep(INTERVAL)


def pattern_of(member: str) -> str:
    """The pattern of a member: ``BENCH_NOISE`` has them separated by commas, the first for the first member."""
    kinds = os.environ.get("BENCH_NOISE", "").split(",")
    return kinds[(int(member.rpartition("-")[2]) - 1) % len(kinds)]


def application() -> web.Application:
    """The cart of this member."""
    member, limit = os.environ["UNDERSTUDY_MEMBER"], int(os.environ["BENCH_LIMIT"])
    app = make_app(os.environ.get("UNDERSTUDY_URL", SIDECAR_URL), member)

    async def memory(_: web.Application) -> AsyncIterator[None]:
        kind = pattern_of(member)
        tasks: set[asyncio.Task[None]] = set()

        def leak() -> None:
            tasks.add(asyncio.create_task(run_leak(int(os.environ["BENCH_LEAK"]))))

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, leak)
        if kind:
            work = run_cache(limit) if kind == CACHE else run_noise(kind, len(member), limit)
            tasks.add(asyncio.create_task(work))
        yield
        for task in tasks:
            task.cancel()

    app.cleanup_ctx.append(memory)
    return app


if __name__ == "__main__":
    web.run_app(application(), host=os.environ["HOST"], port=int(os.environ["PORT"]), print=None, access_log=None)
