"""``host:port`` as text, the form in which addresses are configured, registered and shown. Pure."""

import re

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})", re.ASCII)
_HIGHEST_PORT = 65535


def split_address(address: str, *, lowest_port: int = 0) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as host without brackets and port.

    Args:
        address: the text. An IPv6 address has brackets (RFC 3986, 3.2.2): without, nobody can tell its end from a port.
        lowest_port: 1 where 0, "any free port", is not allowed.

    Raises:
        ValueError: the text is not an address, or its port is out of range; the message has an example.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        hint = "; an IPv6 address needs brackets" if address.count(":") > 1 else ""
        raise ValueError(f"{address!r} is not HOST:PORT, like 127.0.0.1:7600 or [::1]:7600{hint}")
    port = int(match["port"])
    if not lowest_port <= port <= _HIGHEST_PORT:
        raise ValueError(f"{address!r}: a port is a number from {lowest_port} to {_HIGHEST_PORT}")
    return match["host"].strip("[]"), port
