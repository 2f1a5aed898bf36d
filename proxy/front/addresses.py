"""``host:port`` as Envoy's configuration has it. Pure."""

import ipaddress
from typing import Any

from understudy.statesync.pool.addresses import split_address


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
