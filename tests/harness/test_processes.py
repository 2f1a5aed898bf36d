"""The harness leaves nothing behind: what a test process started ends with it."""

import asyncio
import shutil
import sys
from pathlib import Path

from tests.harness.waiting import until

STARTS_ETCD_AND_WAITS = """
import asyncio, sys
from tests.harness.etcd import EtcdServer
async def main():
    server = await EtcdServer().start()
    print(server.process.pid, server.home, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_etcd_ends_when_the_test_process_is_killed() -> None:
    test_process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTS_ETCD_AND_WAITS, stdout=asyncio.subprocess.PIPE
    )
    assert test_process.stdout is not None
    pid, home = (await asyncio.wait_for(test_process.stdout.readline(), 90)).decode().split()
    assert alive(int(pid))

    test_process.kill()
    await test_process.wait()

    await until(lambda: not alive(int(pid)), what="etcd is gone")
    shutil.rmtree(home)


def alive(pid: int) -> bool:
    try:
        return b"etcd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
