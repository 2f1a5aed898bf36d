"""``host:port`` as text, and as Envoy's configuration has it. Pure."""

import ipaddress
from typing import Any


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``; raises ``ValueError`` with the text that is wrong."""
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    if ":" in bare and not host.startswith("["):
        raise ValueError(f"{address!r} is not host:port; an IPv6 address needs brackets, as in [::1]:8080")
    return bare, int(port)


def socket_address(address: str) -> dict[str, Any]:
    """An ``envoy.config.core.v3.Address``."""
    host, port = split_address(address)
    return {"socket_address": {"address": host, "port_value": port}}


def is_ip(host: str) -> bool:
    """Whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
