"""Pulses: a stopped process is told from a busy one, and no silence counts that may be our own or means nothing."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import pytest

from tests.harness.cable import cable_to
from tests.harness.processes import bound_to
from tests.harness.waiting import stays, until
from understudy.statesync.heartbeat.pulse import KNOWN_FROM, Pulse, Pulses, is_running, link_stands

PROCESS = """
import os, sys, time
from understudy.proxy.health.health_port import HealthPort
from understudy.proxy.health.loop_lag import LoopLag
with HealthPort(("127.0.0.1", 0), lambda: "", LoopLag()) as port:
    print(port.address[1], flush=True)
    sys.stdin.readline()
    print("busy", flush=True)
    while True:  # an event loop with too much to do holds the interpreter like this
        sum(range(10_000))
"""
WHO = ("cart-1", "boot")
USUAL, CAP = 0.3, 2.0
NOW = 1_000.0


def pulse(quiet: float, *, answers: int = KNOWN_FROM, worst: float = 0.0) -> Pulse:
    return Pulse(NOW - quiet if quiet else 0.0, answers, worst)


@pytest.mark.parametrize(
    ("one", "others", "runs"),
    [
        (pulse(0.31), [], False),
        (pulse(0.29), [], True),
        (pulse(0.0), [], True),
        (None, [pulse(0.0)], None),
        (pulse(0.31), [pulse(0.05), pulse(5.0)], False),
        (pulse(5.0), [pulse(0.31), pulse(5.0)], None),
        (pulse(0.79, worst=0.05), [], True),
        (pulse(0.81, worst=0.05), [], False),
        (pulse(2.2, worst=9.0), [], True),
        (pulse(2.31, worst=9.0), [], False),
    ],
)
def test_silence_counts_when_it_lasts_and_is_not_everybodys(one: Pulse | None, others: list[Pulse], runs: bool | None):
    assert is_running(one, others, NOW, usual=USUAL, cap=CAP) is runs


def steady(answered: float, since: float = 60.0) -> Pulse:
    """One that answered ``answered`` seconds ago, and without a gap from ``since`` seconds ago until then."""
    return Pulse(0.0, KNOWN_FROM, 0.0, NOW - answered, NOW - since)


@pytest.mark.parametrize(
    ("silent", "others", "stands"),
    [
        (pulse(0.31), [steady(0.05)], True),
        (pulse(0.31), [steady(5.0), steady(0.05)], True),
        (pulse(0.31), [steady(0.30)], False),  # it answered no question that was sent after the silent one's
        (pulse(0.31, worst=0.2), [steady(0.05)], False),  # the silent one may be that late
        (pulse(3.0), [steady(0.05, since=0.4)], False),  # the link was cut, and this connection has recovered
        (pulse(0.31), [steady(0.05, since=5.0)], False),  # the link may have been cut until then
        (pulse(0.31), [], False),
        (None, [steady(0.06)], False),
        (None, [steady(0.0)], True),
    ],
)
def test_a_link_stands_if_another_member_of_the_site_answered_throughout(
    silent: Pulse | None, others: list[Pulse], stands: bool
):
    assert link_stands(silent, others, since=NOW - 0.2) is stands


@pytest.fixture
def pulses() -> Iterator[Pulses]:
    with Pulses() as running:
        yield running


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    command = bound_to(os.getpid(), [sys.executable, "-c", PROCESS])
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as started:
        yield started
        started.kill()


async def test_a_busy_process_has_a_pulse_and_a_stopped_one_has_none(
    pulses: Pulses, process: subprocess.Popen[str]
) -> None:
    assert process.stdout is not None
    assert process.stdin is not None

    def runs() -> bool | None:
        return is_running(pulses.pulse(WHO), (), time.monotonic(), usual=USUAL, cap=CAP)

    def answers() -> int:
        pulse = pulses.pulse(WHO)
        return pulse.answers if pulse is not None else 0

    pulses.watch({WHO: f"127.0.0.1:{process.stdout.readline().strip()}"})
    await until(lambda: pulses.pulse(WHO), 40, "enough answers to mean something")

    print(file=process.stdin, flush=True)
    assert process.stdout.readline() == "busy\n"
    more = await until(answers, 40, "it answers") + 20
    await until(lambda: answers() >= more, 40, "a busy process has a pulse")

    process.send_signal(SIGSTOP)
    await until(lambda: runs() is False, 40, "a stopped process has none")
    process.send_signal(SIGCONT)
    await until(runs, 40, "it goes on")

    process.kill()
    await until(lambda: runs() is None, 40, "of a process that is gone nothing is said")


async def test_a_connection_that_lost_everything_is_replaced(pulses: Pulses, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None

    def runs() -> bool | None:
        return is_running(pulses.pulse(WHO), (), time.monotonic(), usual=USUAL, cap=CAP)

    connections: list[str] = []

    def connected(*_: int) -> str:
        connections.append(f"connection {len(connections)}")
        return connections[-1]

    port = process.stdout.readline().strip()
    async with cable_to(f"127.0.0.1:{port}", connected) as cable:
        pulses.watch({WHO: cable.address})
        await until(lambda: pulses.pulse(WHO), 40, "enough answers to mean something")
        for connection in (*connections, f"connection {len(connections)}"):
            cable.cut(source=connection)  # for good: what is lost on it never comes
        await until(lambda: runs() is False, 40, "it is silent")
        await until(runs, 40, "the connection after the next one is answered")


async def test_who_never_answered_cannot_fall_silent(pulses: Pulses, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    process.send_signal(SIGSTOP)
    pulses.watch({WHO: f"127.0.0.1:{port}", ("cart-2", "boot"): "127.0.0.1:1", ("cart-3", "boot"): "nonsense"})
    await stays(lambda: pulses.pulse(WHO) is None, 1.0, "nothing is said of it")


async def test_nobody_is_asked_any_more_who_is_not_watched(pulses: Pulses, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    pulses.watch({WHO: f"127.0.0.1:{process.stdout.readline().strip()}"})
    await until(lambda: pulses.pulse(WHO), 40, "it is known")
    pulses.watch({})
    await until(lambda: pulses.pulse(WHO) is None, 40, "it is forgotten")


async def test_the_thread_may_be_gone_before_who_ends_it_has_woken_it() -> None:
    with Pulses() as pulses:
        pulses._ending = True
        await until(lambda: not pulses._thread.is_alive(), 40, "the thread ends by itself")


async def test_nothing_is_said_while_the_thread_that_asks_stands_still(
    pulses: Pulses, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert process.stdout is not None
    pulses.watch({WHO: f"127.0.0.1:{process.stdout.readline().strip()}"})
    await until(lambda: pulses.pulse(WHO), 40, "it is known")

    held = threading.Event()
    try:
        monkeypatch.setattr(pulses, "_round", lambda *_, **__: held.wait())
        await until(lambda: pulses.pulse(WHO) is None, 40, "what nobody looks after is not known")
    finally:
        monkeypatch.undo()
        held.set()
    await until(lambda: pulses.pulse(WHO), 40, "it is known again")
