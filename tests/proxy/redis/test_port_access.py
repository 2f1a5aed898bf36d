"""Who may use the Redis port, where it listens, and what clients hear while they wait."""

import stat
from pathlib import Path

from tests.harness.redis_client import RedisClient, redis_client
from tests.harness.secrets import write_secret
from tests.harness.sidecars import sidecar_pool
from tests.harness.waiting import until

TOKEN = "a-token-of-some-length"


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_without_the_password_a_client_learns_nothing(etcd, pool_name, tmp_path):
    tokens, socket = tmp_path / "tokens", tmp_path / "redis.sock"
    write_secret(tokens, f"{TOKEN}\nanother-token-of-some-length\n")
    async with sidecar_pool(etcd, pool_name) as pool:
        pool.logs = tmp_path
        pool.flags = lambda _: ("--redis", f"unix:{socket}", "--session-token-file", tokens)
        await pool.start("a")
        await pool.settle(("a",))
        assert permissions(socket) == 0o660
        async with redis_client(f"unix:{socket}") as client:
            for command in (("GET", "k"), ("PING",), ("INFO",), ("CLIENT", "LIST"), ("SCAN", "0"), ("MULTI",)):
                assert str(await client(*command)) == "NOAUTH Authentication required."
            assert str(await client("HELLO", 3)).startswith("NOAUTH HELLO must be called")
            assert str(await client("AUTH", "wrong")).startswith("WRONGPASS")
            assert str(await client("HELLO", 3, "AUTH", "default", "wrong")).startswith("WRONGPASS")
            assert (await client("HELLO", 3, "AUTH", "anybody", TOKEN))[b"proto"] == 3
            assert await client("SET", "k", "v" * 20_000) == b"OK"
            await client("RESET")
            assert str(await client("GET", "k")) == "NOAUTH Authentication required."
            assert await client("AUTH", "another-token-of-some-length") == b"OK"
            assert await client("STRLEN", "k") == 20_000
        for stranger in (b"*11\r\n", b"*2\r\n$4\r\nAUTH\r\n$16385\r\n"):
            answer = await (await RedisClient.connect(f"unix:{socket}")).until_closed(stranger)
            assert answer.startswith(b"-ERR Protocol error: unauthenticated")


async def test_clients_that_asked_for_it_hear_of_a_wait_before_and_after_it(etcd_server, pool_name):
    async with sidecar_pool(etcd_server, pool_name) as pool:
        await pool.start("a")
        await pool.settle(("a",))
        async with redis_client(pool.members["a"].redis, protocol=3) as client:
            assert await client("CLIENT", "MAINT_NOTIFICATIONS", "ON", "moving-endpoint-type", "none") == b"OK"
            etcd_server.pause()
            client.send(("SET", "k", "v"))
            kind, number, patience = await client.answer()
            assert (kind, number > 0, patience > 0) == (b"FAILING_OVER", True, True)
            etcd_server.resume()
            assert {str(await client.answer()) for _ in range(2)} == {"b'OK'", str([b"FAILED_OVER", number])}
            assert await client("GET", "k") == b"v"


async def test_commands_wait_while_commits_lag_behind(etcd, pool_name):
    async with sidecar_pool(etcd, pool_name, "slots: 16\nlimits: {queued_writes: 4}") as pool:
        await pool.start("a")
        await pool.settle(("a",))
        async with redis_client(pool.members["a"].redis) as client:
            await client("CLIENT", "SETNAME", "understudy:durability=async")
            client.send(*[("SET", f"k{n}", "v") for n in range(300)])
            assert await client.answers(300) == [b"OK"] * 300
            await until(lambda: _has_keys(client, 300), 30, "all writes are committed")


async def test_commands_wait_while_the_sidecar_starts(etcd_server, pool_name):
    async with sidecar_pool(etcd_server, pool_name) as pool:
        await pool.start("a")
        await pool.settle(("a",))
        sidecar, address = pool.members["a"].sidecar, pool.members["a"].redis
        sidecar.kill()
        etcd_server.pause()
        sidecar.start()
        await until(lambda: _listens(address), 30, "the port is open")
        async with redis_client(address) as client, redis_client(address) as other:
            client.send(("GET", "none"), ("SET", "k", "v"), ("GET", "k"))
            assert await other("PING") == b"PONG", "the commands have arrived"
            etcd_server.resume()
            assert await client.answers(3) == [None, b"OK", b"v"]


async def _has_keys(client: RedisClient, count: int) -> bool:
    return await client("DBSIZE") == count


async def _listens(address: str) -> bool:
    try:
        (await RedisClient.connect(address)).close()
    except OSError:
        return False
    return True
