"""What Redis clients see when members die, stand still or fall silent. Judged by what the clients were told."""

import asyncio
import contextlib
import signal
from collections import Counter

from tests.harness.redis_client import RedisClient, redis_client
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until

ORDERS = (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"))
NAMES = ("a", "b", "c")


class Counting:
    """A client that counts up its own keys, one command after the other. ``unknown``: it got no answer, or an error."""

    def __init__(self, pool: SidecarPool, entry: str, number: int) -> None:
        self.pool, self.entry = pool, entry
        self.keys = [f"count-{number}-{n}" for n in range(6)]
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.last: dict[str, int] = {}
        self.stopped = False

    async def run(self) -> None:
        client: RedisClient | None = None
        turn = 0
        while not self.stopped:
            key = self.keys[turn % len(self.keys)]
            turn += 1
            try:
                client = client or await RedisClient.connect(self.pool.members[self.entry].redis)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            try:
                answer = await client("INCR", key)
            except (ConnectionError, TimeoutError):
                answer, client = None, None
            if isinstance(answer, int):
                assert answer > self.last.get(key, 0), f"{key} went back from {self.last[key]} to {answer}"
                self.last[key] = answer
                self.acknowledged[key] += 1
            else:
                self.unknown[key] += 1
        if client is not None:
            client.close()


async def test_no_acknowledged_command_is_lost_or_carried_out_twice_when_members_are_killed(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name) as pool:
        await pool.start(*NAMES)
        await pool.settle(*ORDERS)
        await pool.await_copies(*NAMES)
        clients = [Counting(pool, entry, number) for number, entry in enumerate("aacc" + "b")]
        running = [asyncio.create_task(client.run()) for client in clients]
        for victim in ("b", "c", "b"):
            done = sum(client.acknowledged.total() for client in clients)
            await until(lambda done=done: sum(c.acknowledged.total() for c in clients) > done + 100, 60, "progress")
            pool.kill(victim)
            done = sum(client.acknowledged.total() for client in clients)
            await until(lambda done=done: sum(c.acknowledged.total() for c in clients) > done + 100, 60, "progress")
            await pool.start(victim)
            await pool.await_copies(*NAMES)
        for client in clients:
            client.stopped = True
        await asyncio.gather(*running)

        async with redis_client(pool.members["a"].redis) as reader:
            for client in clients:
                for key in client.keys:
                    value = int(await reader("GET", key) or 0)
                    known = client.acknowledged[key]
                    assert known <= value <= known + client.unknown[key], (client.entry, key)
        lasting = [client for client in clients if client.entry == "a"]
        assert sum(client.unknown.total() for client in lasting) == 0, "a client of a living member saw an error"


async def test_commands_that_waited_in_a_stopped_sidecar_are_not_carried_out(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name, "slots: 16") as pool:
        await pool.start(*NAMES)
        await pool.settle(*ORDERS)
        await pool.await_copies(*NAMES)
        key = pool.key_in(ORDERS, "a")
        async with redis_client(pool.members["a"].redis) as old, redis_client(pool.members["b"].redis) as new:
            assert await old("SET", key, "first") == b"OK"
            pool.members["a"].sidecar.signal(signal.SIGSTOP)
            old.send(("SET", key, "late"))
            assert await new("SET", key, "newer") == b"OK"
            await asyncio.sleep(1.2)
            pool.members["a"].sidecar.signal(signal.SIGCONT)
            with contextlib.suppress(ConnectionError):
                assert not isinstance(await old.answer(), bytes), "a command from before the standstill was carried out"
            assert await new("GET", key) == b"newer"


async def test_a_lock_is_told_again_to_who_did_not_hear_of_it_and_to_nobody_else(etcd_server, pool_name):
    async with sidecar_pool(etcd_server, pool_name) as pool:
        await pool.start("a")
        await pool.settle(("a",))
        address = pool.members["a"].redis
        async with redis_client(address) as first, redis_client(address) as second:
            assert await first("SET", "lock", "mine", "NX", "PX", 50_000) == b"OK"
            assert await first("SET", "lock", "mine", "NX", "PX", 50_000) is None
            assert await second("SET", "lock", "mine", "NX", "PX", 50_000) is None
            etcd_server.pause()
            gone = await RedisClient.connect(address)
            gone.send(("SET", "unheard", "token", "NX", "PX", 50_000))
            await until(lambda: _waits(pool), 30, "the command waits for etcd")
            gone.writer.transport.abort()
            await until(lambda: _alone(first, second), 30, "the sidecar knows that the client has gone")
            etcd_server.resume()

            async def won() -> bool:
                return await second("GET", "unheard") == b"token"

            await until(won, 30, "the write was committed")
            assert await second("SET", "unheard", "another", "NX", "PX", 50_000) is None
            assert await second("SET", "unheard", "token", "NX", "PX", 50_000) == b"OK"
            assert await first("SET", "unheard", "token", "NX", "PX", 50_000) is None


async def _waits(pool: SidecarPool) -> bool:
    async with pool.http.get(f"http://{pool.members['a'].peer}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return any(line.startswith("understudy_oldest_write_seconds ") and float(line.split()[1]) > 0 for line in lines)


async def _alone(*clients: RedisClient) -> bool:
    listed = await clients[0]("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    return listed.count(b"\n") == len(clients)
