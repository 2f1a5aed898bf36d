"""Whether this process stood still or was only slow: its CPU time and its wait for a CPU tell."""

import asyncio
import signal
import subprocess
import sys
import time

import pytest

from tests.harness.commands import ROOT
from understudy.proxy.health.loop_lag import CpuWait, LoopLag, stood_still

FROZEN = """
import asyncio, time
from understudy.proxy.health.loop_lag import LoopLag

async def main():
    watch = LoopLag()
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0.1)
    print("ready", flush=True)
    give_up = time.monotonic() + 40
    while not [still for still, _ in watch.standstills() if still >= 0.5] and time.monotonic() < give_up:
        await asyncio.sleep(0.05)
    print(watch.standstills() or "never", flush=True)

asyncio.run(main())
"""
needs_linux = pytest.mark.skipif(CpuWait().seconds() is None, reason="the kernel does not tell who waits for a CPU")


@pytest.mark.parametrize(
    ("late", "ran", "waited", "still"),
    [
        (5.0, 0.0, 0.0, 5.0),
        (5.0, 4.9, 0.0, 0.0),
        (5.0, 0.1, 4.8, 0.0),
        (5.0, 0.5, 1.5, 3.0),
        (0.25, 0.0, 0.0, 0.25),
        (0.1, 0.0, 0.0, 0.0),
        (5.0, 0.0, None, 5.0),
        (1.0, 0.0, None, 0.0),
        (5.0, 5.0, None, 0.0),
    ],
    ids=[
        *("stopped", "busy", "without a CPU", "some of all", "short", "too short"),
        *("stopped where the kernel is silent", "late where it is silent", "busy where it is silent"),
    ],
)
def test_who_neither_ran_nor_waited_for_a_cpu_stood_still(late, ran, waited, still):
    assert stood_still(late, ran, waited) == still


async def stalled(block) -> list[tuple[float, float]]:
    """What a watch tells when ``block`` keeps its event loop from running."""
    watch = LoopLag()
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0.1)
    block()
    await asyncio.sleep(0.1)
    running.cancel()
    return watch.standstills()


def compute() -> None:
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass


@needs_linux
async def test_a_busy_event_loop_does_not_stand_still():
    assert [still for still, _ in await stalled(compute) if still > 0.3] == []


@needs_linux
def test_a_process_that_was_stopped_knows_it_afterwards():
    with subprocess.Popen([sys.executable, "-c", FROZEN], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.8)
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline() != b"never\n"
        finally:
            process.kill()
