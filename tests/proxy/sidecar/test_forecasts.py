"""Forecasts of real sidecars: what their records say, and that a member whose failure is predicted moves away."""

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import sidecar_pool
from tests.harness.waiting import until
from understudy.deploy.inspect.member_views import forecast_warnings
from understudy.statesync.pool.records import ForecastLevel, Leaving, Member, MemberState
from understudy.statesync.pool.state import At, PoolState


async def test_a_member_whose_application_uses_too_much_is_named_until_nobody_wants_forecasts(
    etcd: EtcdServer, pool_name: str
) -> None:
    async with sidecar_pool(etcd, pool_name) as pool:
        pool.flags = lambda _: ("--app-memory-limit", 1_000_000)
        await pool.start("cart-1")

        async def warned() -> Member | None:
            record = await pool.record("cart-1")
            return record if record and record.expected is ForecastLevel.WARN else None

        record: Member = await until(warned)
        assert record.forecast.startswith("memory ")
        assert record.forecast.endswith("% of 977 KiB")
        assert forecast_warnings(PoolState(pool.keys, members={"cart-1": At(record, 1)})) == [
            f"cart-1 may fail soon: {record.forecast}"
        ]
        await pool.apply(pool.spec.model_copy(update={"predictive": "off"}))

        async def silent() -> bool:
            record = await pool.record("cart-1")
            return record is not None and not record.forecast and not record.forecast_level

        await until(silent)


WHY = "predicted: memory 91 % of 512 MiB, full in 20 s"


async def test_a_member_that_will_fail_hands_over_by_the_table_and_returns_when_the_table_says_so(
    etcd: EtcdServer, pool_name: str
) -> None:
    async with sidecar_pool(etcd, pool_name) as pool:
        await pool.start("a", "b")
        await pool.settle(("a", "b"))
        assert (await pool.call("a", "PUT", "/k", "kept"))[0] == 201
        record = await pool.record("a")
        assert record is not None
        await pool.write_table([("b",)], leaving={"a": Leaving(record.boot, WHY)})
        await pool.await_owners([("b",)])
        assert {owner.cause for owner in (await pool.owners()).values()} == {WHY}
        assert (await pool.call("b", "GET", "/k"))[2] == b"kept"

        async def says(state: MemberState, reason: str) -> bool:
            now = await pool.record("a")
            return now is not None and (now.state, now.reason) == (state, reason)

        await until(lambda: says(MemberState.DRAINING, WHY))
        await pool.write_table([("b",)])
        await until(lambda: says(MemberState.READY, ""))
        await pool.settle(("a", "b"))
        assert (await pool.call("a", "GET", "/k"))[2] == b"kept"
