"""The tutorial's commands, as they are on the page, do what the page says of them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.places import ROOT
from tests.harness.processes import bound_to
from tests.harness.waiting import free_port, until
from understudy.deploy.common.layout import read_layout, read_processes

pytest.importorskip("flask_session")
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

SECTION = (ROOT / "docs/tutorial.md").read_text().partition("\n## 4. ")[2].partition("\n## ")[0]
SPEC = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
COMMANDS = re.findall(r"^    (\S.*)$", SECTION, re.MULTILINE)
PATIENCE = 120


class Newcomer:
    """Somebody who types the page's commands; the virtual environment and the port are those of the test."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        self.state = home / ".understudy"

    def line(self, command: str) -> list[str]:
        programs = f"{Path(sys.executable).parent}/"
        own = command.replace(".venv/bin/", programs).replace("127.0.0.1:8080", f"127.0.0.1:{self.port}")
        return bound_to(os.getpid(), ["/bin/bash", "-c", own])

    def type(self, command: str) -> str:
        done = subprocess.run(
            self.line(command), cwd=self.home, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    async def cart(self, command: str) -> str:
        """What the application says, as soon as it answers."""
        return await until(lambda: answer if "tea" in (answer := self.type(command)) else "", 60, "an answer")


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    (tmp_path / "shop.yaml").write_text(SPEC[0])
    one = Newcomer(tmp_path)
    start = next(command for command in COMMANDS if "understudy up" in command)
    up = subprocess.Popen(one.line(f"exec {start} --listen 127.0.0.1:8080"), cwd=tmp_path)
    yield one
    up.send_signal(signal.SIGINT)
    assert up.wait(PATIENCE) == 0


async def test_a_flask_application_keeps_its_cart_when_its_member_is_killed(newcomer: Newcomer) -> None:
    tea, milk, explain, jam, failovers = COMMANDS[-5:]
    assert len(SPEC) == 1
    assert [word for word in ("tea", "milk", "jam") if any(f"item={word}" in line for line in COMMANDS[-5:])]
    layout = await until(lambda: read_layout(newcomer.state), PATIENCE, "the pool has started")
    assert layout.members
    await newcomer.cart(tea)
    assert "milk" in await newcomer.cart(milk)
    owner = re.search(r"owner\s+(shop-\d)", newcomer.type(explain))
    assert owner, newcomer.type(explain)
    for process in read_processes(newcomer.state):
        if process["name"].partition("/")[0] == owner[1]:
            os.kill(process["pid"], signal.SIGKILL)
    answer = await newcomer.cart(jam)
    assert all(item in answer for item in ("tea", "milk", "jam")), answer
    assert await until(lambda: owner[1] in newcomer.type(failovers), 60, "the takeover is listed")
