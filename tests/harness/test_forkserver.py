"""A forked program is a process like any other."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.forkserver import forked
from tests.harness.processes import bound_to
from tests.harness.waiting import until

TELLS = """
import json, os, sys
told = {"arguments": sys.argv, "parent": os.getppid(), "directory": os.getcwd(), "said": sys.stdin.read()}
print(json.dumps(told | {"mode": os.environ.get("MODE"), "loaded": "understudy.xds.control.server" in sys.modules}))
print("complaint", file=sys.stderr)
sys.exit(3)
"""
SLEEPS = "import time; time.sleep(600)"
ENDS = """
import atexit, sys, threading
atexit.register(print, "at its exit")
threading.Thread(target=lambda: (threading.main_thread().join(), print("by another thread"))).start()
print("by the main thread")
{end}
"""
STARTS_ANOTHER = f"""
import os, subprocess, sys
from pathlib import Path
from understudy.deploy.local import processes
done = subprocess.run(processes.tethered(Path(sys.executable), "-c", {TELLS!r}), stdin=subprocess.DEVNULL)
print(os.getpid(), done.returncode)
"""
STARTS_ONE_AND_WAITS = f"""
import subprocess, sys, time
from tests.harness.forkserver import forked, start
start()
print(subprocess.Popen(forked([sys.executable, "-c", {SLEEPS!r}])).pid, flush=True)
time.sleep(600)
"""


async def test_it_has_arguments_files_a_directory_and_an_environment_of_its_own(tmp_path: Path) -> None:
    program = [sys.executable, "-c", TELLS, "one", "two"]
    for command in (forked(program), bound_to(os.getpid(), program)):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=-1, stdout=-1, stderr=-1, cwd=tmp_path, env={**os.environ, "MODE": "quick"}
        )
        said, complained = await process.communicate(b"hello")
        assert process.returncode == 3
        assert complained == b"complaint\n"
        loaded = "true" if command[0] != sys.executable else "false"
        assert said.decode() == (
            f'{{"arguments": ["-c", "one", "two"], "parent": {os.getpid()}, "directory": "{tmp_path}", '
            f'"said": "hello", "mode": "quick", "loaded": {loaded}}}\n'
        )


def test_it_can_be_signalled_and_leads_a_session_if_that_is_asked() -> None:
    process = subprocess.Popen(forked([sys.executable, "-c", SLEEPS]), start_new_session=True)
    assert os.getsid(process.pid) == process.pid
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("end", "code", "complaint"),
    [
        ("", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(-1)", 255, ""),
        ("sys.exit('a reason')", 1, "a reason\n"),
        ("raise KeyError('x')", 1, "KeyError: 'x'\n"),
    ],
)
def test_it_ends_like_any_other(end: str, code: int, complaint: str) -> None:
    program = [sys.executable, "-c", ENDS.format(end=end)]
    for command in (forked(program), bound_to(os.getpid(), program)):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == code
        assert done.stdout == "by the main thread\nby another thread\nat its exit\n"
        assert done.stderr.endswith(complaint)
        assert bool(done.stderr) is bool(complaint)


def test_a_module_is_run_as_the_main_one() -> None:
    done = subprocess.run(
        forked([sys.executable, "-m", "understudy.deploy.cli", "sidecar", "--no-such"]),
        check=False,
        capture_output=True,
    )
    assert done.returncode == 2
    assert b"No such option" in done.stderr
    assert b"Warning" not in done.stderr


def test_other_programs_and_what_python_reads_at_its_start_are_no_matter_for_a_fork() -> None:
    assert subprocess.run(forked(["/bin/sh", "-c", "exit 7"]), check=False).returncode == 7
    shows = [sys.executable, "-c", "import sys; sys.exit(sys.flags.dev_mode)"]
    assert subprocess.run(forked(shows), check=False, env={**os.environ, "PYTHONDEVMODE": "1"}).returncode == 1


def test_it_can_fork_the_programs_of_a_local_pool_itself() -> None:
    done = subprocess.run(forked([sys.executable, "-c", STARTS_ANOTHER], forks=True), check=True, stdout=-1, text=True)
    child, parent = done.stdout.splitlines()
    told = json.loads(child)
    assert [str(told["parent"]), "3"] == parent.split()
    assert told["loaded"]


@pytest.mark.nightly
async def test_it_ends_when_the_test_process_is_killed() -> None:
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTS_ONE_AND_WAITS, stdout=-1, cwd=Path(__file__).parents[2]
    )
    assert starter.stdout is not None
    pid = int(await asyncio.wait_for(starter.stdout.readline(), 120))
    os.kill(pid, 0)
    starter.kill()
    await starter.wait()

    await until(lambda: not _runs(pid), what="the sleeper is gone")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
