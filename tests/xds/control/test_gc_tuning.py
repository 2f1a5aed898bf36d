"""When garbage is looked for; in a process of its own, since the collector is the process's."""

import subprocess
import sys

from tests.harness.commands import ROOT

SCRIPT = """
import asyncio, gc, weakref
from understudy.xds.control.gc_tuning import YOUNG, collecting_when_calm

class Thing:
    pass

def cycle():
    thing = Thing()
    thing.me = thing
    return weakref.ref(thing)

async def main():
    usual, pushes = gc.get_threshold(), 0
    async with collecting_when_calm(lambda: pushes, every=0.05, calm=0.2):
        full = []
        gc.callbacks.append(lambda phase, info: full.append(pushes) if info["generation"] == 2 else None)
        assert gc.get_threshold()[0] == YOUNG and gc.get_freeze_count() > 1000
        lost = cycle()
        for _ in range(20):
            pushes += 1
            await asyncio.sleep(0.05)
        assert lost() is not None and not full, "not while there is something to do"
        async with asyncio.timeout(20):
            while lost() is not None:
                await asyncio.sleep(0.01)
        assert full[0] == pushes
    assert gc.get_threshold() == usual and gc.get_freeze_count() == 0

asyncio.run(main())
"""


def test_everything_is_looked_at_only_in_a_calm_moment_and_the_process_is_left_as_it_was():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
