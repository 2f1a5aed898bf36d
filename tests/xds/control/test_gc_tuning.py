"""When garbage is collected; in a process of its own, since the collector belongs to the process."""

import subprocess
import sys

from tests.harness.commands import ROOT

SCRIPT = """
import asyncio, gc, weakref
from understudy.xds.control.gc_tuning import YOUNG_THRESHOLD, collect_when_idle

class Thing:
    pass

def cycle():
    thing = Thing()
    thing.me = thing
    return weakref.ref(thing)

async def main():
    usual, pushes = gc.get_threshold(), 0
    collecting = asyncio.create_task(collect_when_idle(lambda: pushes, interval=0.05, idle=0.2))
    await asyncio.sleep(0)
    try:
        full = []
        gc.callbacks.append(lambda phase, info: full.append(pushes) if info["generation"] == 2 else None)
        assert gc.get_threshold()[0] == YOUNG_THRESHOLD and gc.get_freeze_count() > 1000
        lost = cycle()
        for _ in range(20):
            pushes += 1
            await asyncio.sleep(0.05)
        assert lost() is not None and not full, "not while there is something to do"
        async with asyncio.timeout(20):
            while lost() is not None:
                await asyncio.sleep(0.01)
        assert full[0] == pushes
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
    assert gc.get_threshold() == usual and gc.get_freeze_count() == 0

asyncio.run(main())
"""


def test_all_objects_are_collected_only_while_the_process_is_idle_and_its_settings_are_restored():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
