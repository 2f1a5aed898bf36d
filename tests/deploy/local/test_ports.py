"""Addresses are checked before anything starts, and picked so that nobody else takes them."""

import random
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from understudy.deploy.common.errors import DeployError, PortInUseError
from understudy.deploy.local.ports import BLOCK, PortPicker, require_free
from understudy.statesync.pool.addresses import split_address


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_an_occupied_port_is_refused_with_what_to_do(taken):
    with pytest.raises(PortInUseError, match=rf"{taken} is in use by another process: choose another with --listen"):
        require_free(taken, "choose another with --listen")


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(PortInUseError, match="not usable"):
        require_free("192.0.2.1:80", "choose another")


def test_a_host_that_does_not_resolve_is_refused():
    with pytest.raises(DeployError, match="cannot be resolved"):
        require_free("nowhere.invalid:80", "choose another")


@pytest.fixture
def picker():
    with closing(PortPicker()) as picker:
        yield picker


def test_a_free_port_is_fine_even_just_after_its_use(taken, picker):
    host, port = split_address(taken)
    picked = picker.pick()
    require_free(picked, "")
    with socket.create_connection((host, port)):
        pass


def test_picked_ports_are_free_and_never_the_same(picker):
    picked = [picker.pick() for _ in range(2 * BLOCK)]
    assert len(set(picked)) == 2 * BLOCK
    for address in picked:
        require_free(address, "")


def test_a_picker_passes_over_ports_in_use(picker):
    host, port = split_address(picker.pick())
    with socket.create_server((host, port + 1)):
        assert split_address(picker.pick())[1] > port + 1


def after(drawn: list[int]) -> Callable[[int, int], int]:
    """Draws all that was drawn before, and then something else."""
    turn = 0

    def draw(low: int, high: int) -> int:
        nonlocal turn
        if turn == len(drawn):
            drawn.append(random.randint(low, high))
        turn += 1
        return drawn[turn - 1]

    return draw


def test_two_pools_that_start_at_the_same_moment_never_get_the_same_port():
    drawn: list[int] = []
    with ExitStack() as stack:
        pickers = [stack.enter_context(closing(PortPicker(after(drawn)))) for _ in range(3)]
        picked = [picker.pick() for picker in pickers for _ in range(BLOCK // 2)]
    assert len(set(picked)) == 3 * (BLOCK // 2)
