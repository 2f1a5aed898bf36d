"""The services of a process run in one task group: who fails ends it, by name, and an orderly stop ends all."""

import asyncio

import pytest

from understudy.statesync.etcd.settings import EtcdSettings
from understudy.xds.control import server
from understudy.xds.control.ports import StartError
from understudy.xds.control.server import ControlSettings, run_control
from understudy.xds.control.services import ServiceFailed, run_services


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    async def steady(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.lines.append("steady ended")

    async def wind_down(self) -> None:
        self.lines.append("wind down")


async def test_a_stop_winds_down_first_and_then_ends_every_service() -> None:
    log, stop = Log(), asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await run_services({"one": log.steady, "two": log.steady}, stop, log.wind_down)
    assert log.lines == ["wind down", "steady ended", "steady ended"]


async def test_a_service_that_fails_ends_all_others_and_is_named() -> None:
    log = Log()

    async def failing() -> None:
        raise KeyError("slot")

    with pytest.raises(ServiceFailed, match=r"service leader failed \(KeyError: 'slot'\)") as caught:
        await run_services({"publisher": log.steady, "leader": failing}, asyncio.Event(), log.wind_down)
    assert isinstance(caught.value.__cause__, KeyError)
    assert log.lines == ["steady ended"], "nothing is wound down when a service has failed"


async def test_a_service_that_ends_by_itself_ends_the_process_but_may_end_during_the_stop() -> None:
    log, stop = Log(), asyncio.Event()

    async def short() -> None:
        await asyncio.sleep(0)

    with pytest.raises(ServiceFailed, match=r"service election failed \(it ended by itself\)"):
        async with asyncio.timeout(20):
            await run_services({"election": short}, stop, log.wind_down)
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await run_services({"election": stop.wait}, stop, log.wind_down)  # type: ignore[dict-item]
    assert log.lines == ["wind down"]


async def test_an_error_while_winding_down_is_not_taken_for_a_service() -> None:
    stop = asyncio.Event()
    stop.set()

    async def broken() -> None:
        raise StartError("no")

    with pytest.raises(BaseExceptionGroup):
        await run_services({"steady": Log().steady}, stop, broken)


async def test_the_process_names_the_service_in_one_line_and_exits_with_1(monkeypatch, capfd) -> None:
    async def serve(*_: object) -> None:
        raise ServiceFailed("failover tracer", ValueError("no such span"))

    monkeypatch.setattr(server, "serve_until", serve)
    assert await run_control(ControlSettings("cart", "control-1", EtcdSettings(("127.0.0.1:1",)))) == 1
    assert capfd.readouterr().err == ("understudy control: service failover tracer failed (ValueError: no such span)\n")
