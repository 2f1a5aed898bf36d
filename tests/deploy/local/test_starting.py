"""A process that does not get ready says so early, with the reason: its answer, that nobody listens, how it ended."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.harness.waiting import free_port, until
from understudy.deploy.common.errors import DeployError, NotReadyError, ProcessStartError
from understudy.deploy.local import processes as under_test
from understudy.deploy.local import starting
from understudy.deploy.local.processes import Processes, Program
from understudy.deploy.local.starting import all_ready

APP = "cart-1/app"


@pytest.fixture
async def processes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Processes]:
    monkeypatch.setattr(under_test, "REFUSAL_TIMEOUT", 0.1)
    async with Processes() as running:
        yield running


@pytest.fixture
async def answering() -> AsyncIterator[str]:
    """An application that answers any path ``/NUMBER`` with that status; the beginning of its URL."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]))

    app = web.Application()
    app.router.add_get("/{status}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def program(tmp_path: Path, health: str, code: str = "import time; time.sleep(600)", name: str = APP) -> Program:
    return Program(name, (sys.executable, "-S", "-c", code), tmp_path / "app.log", 0, health=health)


async def test_an_application_that_has_no_such_path_is_refused_long_before_its_time_is_over(
    processes: Processes, tmp_path: Path, answering: str
) -> None:
    processes.launch(program(tmp_path, f"{answering}/404"))
    with pytest.raises(
        DeployError, match=rf"it answered 404 at {answering}/404; .*: set its health check with --app-health"
    ):
        await asyncio.wait_for(all_ready(processes, [APP], print, app_timeout=600), 30)


async def test_an_application_that_is_not_well_yet_has_its_time(
    processes: Processes, tmp_path: Path, answering: str
) -> None:
    processes.launch(program(tmp_path, f"{answering}/503"))
    await until(lambda: processes[APP].unready)
    with pytest.raises(
        DeployError, match=r"not ready after 0.5 s: it answered 503 at .*: give it more time with --app-t"
    ):
        await all_ready(processes, [APP], print, app_timeout=0.5)


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_an_application_that_does_not_listen_is_told_with_what_it_printed(
    processes: Processes, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "app.log").write_text("of a life before\n")
    where = f"127.0.0.1:{free_port()}"
    silent = program(tmp_path, f"{scheme}://{where}")
    processes.launch(silent)
    await until(lambda: processes[APP].unready)
    expected = f"nothing listens at {where}; its process still runs and has printed nothing"
    with pytest.raises(NotReadyError, match=expected):
        await processes.ready(APP, timeout=0.5)
    await processes.stop()


async def test_the_time_of_an_application_begins_when_all_else_is_ready(processes: Processes, tmp_path: Path) -> None:
    processes.launch(program(tmp_path, f"tcp://127.0.0.1:{free_port()}"))
    others: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(processes.ready(APP, timeout=0.01, after=others))
    await until(lambda: processes[APP].unready)
    assert not waiting.done()
    others.set_result(None)
    with pytest.raises(NotReadyError, match="was not ready after"):
        await waiting


async def test_what_is_waited_for_is_told_meanwhile(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "PROGRESS_INTERVAL", 0.05)
    where = f"127.0.0.1:{free_port()}"
    processes.launch(program(tmp_path, f"tcp://{where}"), program(tmp_path, f"tcp://{where}", name="control-1"))
    told: list[str] = []
    waiting = asyncio.create_task(all_ready(processes, ["control-1", APP], told.append, app_timeout=60))
    line = f"waiting for {APP}: nothing listens at {where} (timeout 60 s after all other processes are ready)"
    await until(lambda: line in told, what=line)
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_an_application_that_ends_is_told_at_once_with_its_last_output(
    processes: Processes, tmp_path: Path
) -> None:
    processes.launch(program(tmp_path, "tcp://127.0.0.1:9", "print('usage: shop serve')"))
    with pytest.raises(
        ProcessStartError, match=r"ended with exit code 0; its last output was: usage: shop serve; its log"
    ):
        await processes.ready(APP)


async def test_an_interpreter_that_may_not_be_run_is_told_at_once(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("not to be run")
    wanted = program(tmp_path, "tcp://127.0.0.1:9")
    monkeypatch.setattr(sys, "executable", str(python))  # what every process is started by, to be tied to this one
    with pytest.raises(ProcessStartError, match=rf"{APP} cannot be run: {python}: Permission denied"):
        await asyncio.wait_for(processes.start(wanted), 30)


async def test_a_script_whose_interpreter_is_missing_names_it(processes: Processes, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/nowhere/python3\n")
    script.chmod(0o755)
    with pytest.raises(
        ProcessStartError, match=rf"cannot run {script} by its interpreter /nowhere/python3: No such file"
    ):
        await processes.start(Program(APP, (str(script),), tmp_path / "app.log", 0, health="tcp://127.0.0.1:9"))
