"""Processes of a local pool: they come back, stay down on purpose, stop in order, and end with their parent."""

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from tests.harness.waiting import free_port, until
from understudy.deploy.common.errors import ProcessStartError
from understudy.deploy.local.processes import Processes, ProcessState, Program, last_line

WEB = """
import http.server, sys
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""
UNTIL_TERM = """
import signal, sys, time
def leave(*_):
    print(sys.argv[1], file=open(sys.argv[2], "a"))
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(600)
"""


DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def program(name, code, tmp_path, *arguments, stage=0, health="", grace=30.0):
    command = (sys.executable, "-c", code, *(str(argument) for argument in arguments))
    return Program(name, command, tmp_path / f"{name}.log", stage, health=health, grace=grace)


def web(tmp_path, name="web"):
    port = free_port()
    return program(name, WEB, tmp_path, port, health=f"http://127.0.0.1:{port}/")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def test_a_process_killed_by_hand_comes_back_and_its_end_is_told(tmp_path):
    async with Processes() as processes:
        await processes.start(web(tmp_path))
        first = processes["web"].pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: processes["web"].state is ProcessState.RUNNING and processes["web"].pid not in (0, first))
        assert processes["web"].restarts == 1
        assert "SIGKILL" in processes["web"].reason


async def test_only_a_process_that_is_held_by_its_name_is_not_started(tmp_path):
    held = {"witness"}
    witness, other = (web(tmp_path, name) for name in ("witness", "other"))
    async with Processes(held=lambda name: name in held) as processes:
        processes.launch(witness)
        await processes.start(other)
        assert (processes["witness"].state, processes["witness"].pid) == (ProcessState.STARTING, 0)
        held.clear()
        await processes.ready("witness")
        held.add("witness")
        first = {name: processes[name].pid for name in ("witness", "other")}
        for pid in first.values():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: processes["other"].restarts and processes["other"].state is ProcessState.RUNNING)
        assert (processes["witness"].state, processes["witness"].pid) == (ProcessState.WAITING, 0)
        held.clear()
        await until(lambda: processes["witness"].restarts and processes["witness"].state is ProcessState.RUNNING)
        assert processes["witness"].pid not in (0, first["witness"])


async def test_a_process_killed_on_purpose_stays_down_until_it_is_started_again(tmp_path):
    async with Processes() as processes:
        await processes.start(web(tmp_path))
        first = processes["web"].pid
        processes.kill("web")
        await until(lambda: processes["web"].pid == 0)
        assert processes["web"].state is ProcessState.KILLED
        await processes.start_again("web")
        assert processes["web"].state is ProcessState.RUNNING
        assert processes["web"].pid not in (0, first)


async def test_a_process_killed_on_purpose_has_ended_before_it_is_started_again(tmp_path):
    async with Processes() as processes:
        await processes.start(web(tmp_path))
        first = processes["web"].pid
        processes.kill("web")
        await processes.start_again("web")
        assert not alive(first)
        assert (processes["web"].state, processes["web"].restarts) == (ProcessState.RUNNING, 0)
        assert alive(processes["web"].pid)


async def test_a_process_ended_on_purpose_may_say_goodbye_and_stays_down_until_it_is_started_again(tmp_path):
    goodbyes = tmp_path / "goodbyes"
    async with Processes() as processes:
        await processes.start(program("polite", UNTIL_TERM, tmp_path, "goodbye", goodbyes))
        await until(lambda: last_line(processes["polite"].program.log) == "ready")
        first = processes["polite"].pid
        await processes.terminate("polite")
        assert goodbyes.read_text().split() == ["goodbye"]
        assert (processes["polite"].pid, processes["polite"].state) == (0, ProcessState.STOPPED)
        await processes.start_again("polite")
        assert processes["polite"].state is ProcessState.RUNNING
        await until(lambda: processes["polite"].pid not in (0, first))


async def test_a_program_that_cannot_start_is_reported_with_its_last_words(tmp_path):
    broken = program("broken", "import sys; sys.exit('the port is taken')", tmp_path, health="http://127.0.0.1:9/")
    async with Processes() as processes:
        with pytest.raises(
            ProcessStartError, match=r"broken ended with exit code 1: the port is taken; its log is .*broken\.log"
        ):
            await processes.start(broken)


async def test_a_program_that_is_not_there_is_reported(tmp_path):
    missing = Program(
        "missing", (str(tmp_path / "nothing"),), tmp_path / "missing.log", 0, health="http://127.0.0.1:9/"
    )
    async with Processes() as processes:
        with pytest.raises(ProcessStartError, match=r"cannot run .*nothing: No such file"):
            await processes.start(missing)


async def test_a_program_that_never_gets_ready_is_reported(tmp_path):
    slow = program("slow", "import time; time.sleep(600)", tmp_path, health="http://127.0.0.1:9/")
    async with Processes() as processes:
        processes.launch(slow)
        await until(lambda: processes["slow"].unready)
        with pytest.raises(
            ProcessStartError, match=r"slow was not ready after 0\.3 s: nothing listens at 127.0.0.1:9;"
        ):
            await processes.ready("slow", timeout=0.3)


async def test_stopping_ends_the_last_stage_first_and_waits_for_it(tmp_path):
    order = tmp_path / "order"
    async with Processes() as processes:
        for stage, name in enumerate(["etcd", "control", "front"]):
            await processes.start(program(name, UNTIL_TERM, tmp_path, name, order, stage=stage))
        await until(lambda: all(last_line(p.program.log) == "ready" for p in processes.all))
        pids = [process.pid for process in processes.all]
    assert order.read_text().split() == ["front", "control", "etcd"]
    assert not any(alive(pid) for pid in pids)


async def test_a_process_that_ignores_the_stop_is_killed(tmp_path):
    async with Processes() as processes:
        await processes.start(program("deaf", DEAF, tmp_path, grace=0.2))
        await until(lambda: last_line(tmp_path / "deaf.log") == "ready")
        pid = processes["deaf"].pid
    assert not alive(pid)


async def test_children_of_a_killed_process_do_not_stay_behind(tmp_path):
    port = free_port()
    parent = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {WEB!r}, '{port}']); time.sleep(600)"
    )
    async with Processes() as processes:
        await processes.start(program("parent", parent, tmp_path, health=f"http://127.0.0.1:{port}/"))
        processes.kill("parent")

        async def refused():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return True
            writer.close()
            return False

        await until(refused)


async def test_everything_ends_when_the_runner_itself_is_killed(tmp_path):
    runner = textwrap.dedent(
        f"""
        import asyncio, sys
        from pathlib import Path
        from understudy.deploy.local.processes import Processes, Program
        async def main():
            async with Processes() as processes:
                sleeper = Program("sleeper", (sys.executable, "-c", "import time; time.sleep(600)"),
                                  Path({str(tmp_path)!r}) / "sleeper.log", 0)
                await processes.start(sleeper)
                while not processes["sleeper"].pid:
                    await asyncio.sleep(0.01)
                print(processes["sleeper"].pid, flush=True)
                await asyncio.sleep(600)
        asyncio.run(main())
        """
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", runner, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert child.stdout is not None
    sleeper = int(await child.stdout.readline())
    await until(lambda: "sleep(600)" in Path(f"/proc/{sleeper}/cmdline").read_text(), what="the sleeper is itself")
    child.kill()
    await child.wait()
    await until(lambda: not alive(sleeper), what="the sleeper ended")
