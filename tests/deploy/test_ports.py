"""Addresses are checked before anything starts, and picked so that nobody else takes them."""

import socket

import pytest

from deploy.errors import DeployError, PortInUseError
from deploy.ports import PortPicker, require_free, split_address


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


def test_a_free_port_is_fine_even_just_after_its_use(taken):
    host, port = split_address(taken)
    picked = PortPicker().pick()
    require_free(picked, "")
    with socket.create_connection((host, port)):
        pass


def test_picked_ports_are_free_and_never_the_same():
    picker = PortPicker()
    picked = [picker.pick() for _ in range(50)]
    assert len(set(picked)) == 50
    for address in picked:
        require_free(address, "")


def test_a_picker_passes_over_ports_in_use(taken):
    _, port = split_address(taken)
    draws = iter([port, port, 15001, 15002, 15003, 15004])
    assert PortPicker(draw=lambda low, high: next(draws)).pick() != taken


@pytest.mark.parametrize(
    "address", ["7600", "localhost", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "a b:1", ":80", "127.0.0.1:-1"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match=r"HOST:PORT|from 1 to 65535"):
        split_address(address)


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:7600", ("127.0.0.1", 7600)), ("[::1]:80", ("::1", 80)), ("etcd-0.etcd:2379", ("etcd-0.etcd", 2379))],
)
def test_addresses_are_split(address, parts):
    assert split_address(address) == parts
