"""``understudy top``: the screen from a frame, and the command in a real terminal."""

import asyncio
import io
import os
import pty
import sys

import pytest

from tests.harness.waiting import until
from understudy.deploy.cli.commands_top import Screen
from understudy.deploy.common.console_style import Terminal
from understudy.deploy.console.frame import frame_of
from understudy.deploy.console.terminal import Currency, screen
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Member, MemberState, Owner, Process, SyncRecord, Table
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.pool.state import At, PoolState


def pool(slots: int = 64) -> PoolState:
    """Two members; cart-2 serves the last slot alone, and is to give it away."""
    state = PoolState(PoolKeys("cart"))
    state.spec = At(PoolSpec(pool="cart", slots=slots), 1)
    state.table = At(Table(1, (("cart-1", "cart-2"),) * slots), 2)
    for name, condition in (("cart-1", MemberState.UP), ("cart-2", MemberState.DOWN)):
        state.members[name] = At(Member(name, name, "127.0.0.1:1", "127.0.0.1:2", condition, reason="its disk"), 3)
    for slot in range(slots):
        names = ("cart-1", "cart-2") if slot < slots - 1 else ("cart-2",)
        state.owners[slot] = At(Owner(names[0], names[0], 1), 4)
        state.sync_sets[slot] = At(SyncRecord(1, tuple(Process(name, name) for name in names)), 5)
    return state


def shown(state: PoolState, currency: Currency, width: int = 120) -> str:
    terminal = Terminal(file=io.StringIO(), width=width)
    terminal.print(screen(frame_of(state, 9, 100.0), currency, width))
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def test_the_screen_has_problems_the_map_and_the_members() -> None:
    text = shown(pool(), Currency(100.0))
    assert "pool cart  etcd revision 9  live" in text
    assert "cart-2 is DOWN: its disk" in text
    rows = [line for line in text.splitlines() if line.strip().startswith(("0 A", "32 A"))]
    assert [row.count("A  ") for row in rows] == [32, 31]
    assert rows[1].rstrip().endswith("B>")
    assert "requests: not known" in text


def test_a_narrow_terminal_gets_shorter_rows_and_a_large_pool_no_endless_map() -> None:
    assert max(map(len, shown(pool(), Currency(100.0), 80).splitlines())) <= 80
    assert "more slots: understudy table --all" in shown(pool(4096), Currency(100.0))


@pytest.mark.parametrize(
    ("currency", "said"),
    [
        (Currency(100.0, silent_for=12.0, trouble="no route"), "STALE, etcd has been silent for 12 s: no route"),
        (Currency(100.0, paused=True), "PAUSED at 1970-01-01 00:01:40Z"),
    ],
)
def test_it_says_when_what_is_shown_is_not_current(currency: Currency, said: str) -> None:
    assert said in shown(pool(), currency)


async def test_a_paused_screen_does_not_change_and_goes_on_later() -> None:
    view = Screen(pool())
    first, _ = view.frame()
    view.on_key("p")
    view.state.members["cart-2"] = At(Member("cart-2", "b", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP), 8)
    assert view.frame()[0] is first
    view.on_key("p")
    assert view.frame()[0].objects["members"]["cart-2"]["state"] == "UP"
    view.on_key("q")
    assert view.quit


async def test_in_a_terminal_it_follows_etcd_until_q(etcd, client: EtcdClient) -> None:
    keys = PoolKeys("top")
    await client.put(keys.spec, PoolSpec(pool="top", slots=4).encode())
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "understudy.deploy.cli", "top", "--pool", "top", "--etcd", etcd.endpoint]
    process = await asyncio.create_subprocess_exec(*command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = bytearray()

    def shows(text: bytes) -> bool:
        try:
            while part := os.read(ours, 65536):
                seen.extend(part)
        except BlockingIOError:
            pass
        return text in seen

    try:
        await until(lambda: shows(b"pool top"), 60, "the screen is there")
        member = Member("new-1", "boot", "127.0.0.1:1", "127.0.0.1:2", MemberState.UP)
        await client.put(keys.member("new-1"), member.encode())
        await until(lambda: shows(b"new-1"), 60, "a new member is shown")
        os.write(ours, b"q")
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
