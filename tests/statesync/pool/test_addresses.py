"""Addresses are read alike wherever they come from: options, records, what an Envoy says of itself."""

import pytest

from understudy.statesync.pool.addresses import split_address


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:7600", ("127.0.0.1", 7600)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("etcd-0.etcd:2379", ("etcd-0.etcd", 2379)),
        ("control_1:65535", ("control_1", 65535)),
    ],
)
def test_an_address_is_split_at_its_port(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    ["", "7600", "host", "host:", ":80", "host:http", "a b:1", "host:-1", "a:\u0663", "[::1]", "::1:80", "a:1\n"],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match=r"is not HOST:PORT, like 127\.0\.0\.1:7600"):
        split_address(address)


def test_an_ipv6_address_without_brackets_is_told_to_have_them():
    with pytest.raises(ValueError, match="an IPv6 address needs brackets"):
        split_address("fd00::1:80")


@pytest.mark.parametrize(("port", "lowest"), [(65536, 0), (0, 1)])
def test_a_port_out_of_range_is_refused(port, lowest):
    with pytest.raises(ValueError, match=f"a port is a number from {lowest} to 65535"):
        split_address(f"host:{port}", lowest_port=lowest)
