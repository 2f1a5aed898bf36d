"""Unix sockets of the session API: a dead one is replaced, anything else stays as it is."""

import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from understudy.proxy.sidecar.listen import CannotStart, listen
from understudy.statesync.http.http_port import serve


async def listening(path: Path) -> None:
    async with AsyncExitStack() as stack:
        await listen(await serve(stack, web.Application()), f"unix:{path}", "the session API")


async def test_a_regular_file_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    path.write_text("all orders")
    with pytest.raises(CannotStart, match="is no socket"):
        await listening(path)
    assert path.read_text() == "all orders"


async def test_a_link_to_a_file_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "orders.db").write_text("all orders")
    (tmp_path / "link").symlink_to(tmp_path / "orders.db")
    with pytest.raises(CannotStart, match="is no socket"):
        await listening(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


async def test_a_socket_that_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "api"))
    await listening(tmp_path / "api")


async def test_a_socket_that_somebody_serves_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(tmp_path / "api"))
        served.listen()
        with pytest.raises(CannotStart, match="in use"):
            await listening(tmp_path / "api")
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(tmp_path / "api"))
