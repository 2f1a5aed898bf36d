"""What etcd itself takes from one Python process, and what the group commit of statesync makes of it.

A process of its own (``python -m bench.sessions_etcd ENDPOINT``) that answers each line with a line. ``raw`` is the
limit that statesync is measured against: transactions of 100 puts, one in flight, nothing compared.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from bench.sessions_load import BODY
from understudy.statesync.etcd.client import EtcdClient, Put
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Owner
from understudy.statesync.replication.history import version_of
from understudy.statesync.sessions.commit import BATCH_MOST, Committer
from understudy.statesync.sessions.replica import Replica
from understudy.statesync.sessions.session import Method, Stored, Write, WriteContext, decide_write, give_version

WRITERS = 300
KEYS = PoolKeys("bench-layer")


async def single(client: EtcdClient, seconds: float, at_once: int) -> int:
    """Single puts, so many at once."""
    end = time.perf_counter() + seconds
    done = 0

    async def writer(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await client.put(f"/bench/single/{number}/{done % 50}", BODY)
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(writer(number) for number in range(at_once)))
    return round(done / (time.perf_counter() - begin))


async def raw(client: EtcdClient, seconds: float) -> int:
    """Group commit with nothing around it."""
    begin = time.perf_counter()
    done = 0
    while time.perf_counter() < begin + seconds:
        await client.txn((), [Put(f"/bench/raw/{(done + number) % 10_000}", BODY) for number in range(BATCH_MOST)])
        done += BATCH_MOST
    return round(done / (time.perf_counter() - begin))


async def layer(client: EtcdClient, seconds: float) -> int:
    """The statesync layer: decide a write on the copy in memory, encode it, commit it, keep it."""
    fence = await client.put(KEYS.owner(0), Owner("bench", "1", 1).encode())
    committer = Committer(client, KEYS, "bench", "1")
    replica = Replica(client, KEYS)
    replica.clear(0)
    runner = asyncio.create_task(committer.run())
    end = time.perf_counter() + seconds
    done = 0
    numbers = itertools.count(1)

    async def writer(number: int) -> None:
        nonlocal done
        turn = 0
        while time.perf_counter() < end:
            turn += 1
            key = f"key-{number}-{turn % 30}"
            terms = WriteContext(1, time.time_ns() // 1_000_000, 65536, 3600)
            outcome = decide_write(replica.session(0, key), Write(Method.PUT, BODY), terms)
            assert isinstance(outcome, Stored)
            give_version(outcome.session, version_of(1, next(numbers)))
            submission = committer.submit(0, fence, KEYS.session(0, key), outcome.session.encode())
            await submission.done
            replica.put(0, key, outcome.session)
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(writer(number) for number in range(WRITERS)))
    took = time.perf_counter() - begin
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    return round(done / took)


async def answers(endpoint: str) -> AsyncIterator[Any]:
    """The answers to the commands on standard input."""
    yield {"ready": True}
    loop = asyncio.get_running_loop()
    async with EtcdClient([endpoint]) as client:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            match asked["do"]:
                case "raw":
                    rate = await raw(client, asked["seconds"])
                case "layer":
                    rate = await layer(client, asked["seconds"])
                case _:
                    rate = await single(client, asked["seconds"], asked["at_once"])
            yield {"per_second": rate}


async def main() -> None:
    """Serve commands until standard input ends."""
    async for answer in answers(sys.argv[1]):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
