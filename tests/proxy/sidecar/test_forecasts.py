"""What a real sidecar says in its record of an application that uses more than it may."""

from tests.harness.etcd import EtcdServer
from tests.harness.sidecars import sidecar_pool
from tests.harness.waiting import until
from understudy.deploy.inspect.member_views import forecast_warnings
from understudy.statesync.pool.records import ForecastLevel, Member
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
