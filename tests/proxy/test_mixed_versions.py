"""An upgrade under way: one member is of the next version, which writes more into everything than this one knows."""

import json

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import SidecarPool, sidecar_pool
from tests.harness.waiting import until

NEXT_VERSION = """
import json
from understudy.statesync.pool import records as pool
from understudy.statesync.sessions import session as sessions
def with_more(encode):
    def encoded(record):
        head, line, body = encode(record).partition(b"\\n")
        told = {**json.loads(head), "newer": {"and": ["more"]}}
        if "answers" in told:
            told["answers"] = [[*answer, "more"] for answer in told["answers"]]
        return json.dumps(told).encode() + line + body
    return encoded
for kind in (pool.Record, pool.Table, sessions.Session):
    kind.encode = with_more(kind.encode)
"""
SESSIONS = 24


async def apply_spec_of_the_next_version(pool: SidecarPool) -> None:
    spec = json.loads(pool.spec.encode())
    spec |= {"newer": {"a": 1}, "limits": {**spec["limits"], "newer": 7}}
    await pool.client.put(pool.keys.spec, json.dumps(spec).encode())


async def put_all(pool: SidecarPool, by: str, text: str) -> None:
    for number in range(SESSIONS):
        status, _, told = await pool.call(by, "PUT", f"/key-{number}", f"{text} {number}", Idempotency_Key=text)
        assert status in (200, 201), told


async def all_are(pool: SidecarPool, at: str, text: str) -> None:
    for number in range(SESSIONS):
        assert (await pool.call(at, "GET", f"/key-{number}"))[2] == f"{text} {number}".encode()


async def test_members_of_this_version_and_the_next_hand_over_and_take_over(etcd: EtcdServer, pool_name: str) -> None:
    async with sidecar_pool(etcd, pool_name) as pool:
        await apply_spec_of_the_next_version(pool)
        pool.before["next"] = NEXT_VERSION
        await pool.start("this", "next")
        await pool.settle(("this", "next"), ("next", "this"))
        await put_all(pool, "next", "first")
        first = (await pool.call("next", "GET", "/key-0"))[1]["etag"]

        await pool.settle(("this", "next"))
        await all_are(pool, "this", "first")
        status, headers, _ = await pool.call("this", "PUT", "/key-0", "first 0", Idempotency_Key="first")
        assert (status, headers["etag"]) == (201, first), "the same answer, and no second write"
        await put_all(pool, "this", "second")

        await pool.settle(("next", "this"))
        await all_are(pool, "next", "second")
        await put_all(pool, "next", "third")

        pool.kill("next")

        async def taken_over() -> bool:
            return (await pool.call("this", "GET", "/key-0"))[0] == 200

        await until(taken_over, 40, "the member that is left serves")
        await all_are(pool, "this", "third")
