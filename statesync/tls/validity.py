"""From when until when a certificate is valid: the one thing that is read from our own certificate file.

Python's ``ssl`` tells it only of a peer's certificate, and ``cryptography`` is not installed everywhere. So this reads
the first fields of the DER (RFC 5280, section 4.1): version, serial number, signature, issuer, validity.
"""

import calendar
import ssl
import time
from pathlib import Path

_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def validity(path: Path) -> tuple[float, float]:
    """Begin and end of the first certificate in a PEM file, as wall time in seconds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no certificate.
    """
    text = path.read_text(encoding="ascii", errors="replace")
    begin, end = text.find(_BEGIN), text.find(_END)
    if not 0 <= begin < end:
        raise ValueError(f"{path}: holds no certificate in PEM")
    try:
        return _in_der(ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)]))
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path}: its certificate cannot be read: {error}") from None


def _in_der(der: bytes) -> tuple[float, float]:
    _, certificate, _ = _element(der)
    _, signed, _ = _element(certificate)
    kind, _, rest = _element(signed)
    if kind == _VERSION:
        _, _, rest = _element(rest)
    for _ in ("signature", "issuer"):
        _, _, rest = _element(rest)
    kind, dates, _ = _element(rest)
    if kind != _SEQUENCE:
        raise ValueError("no validity where X.509 has it")
    first, begins, rest = _element(dates)
    second, ends, _ = _element(rest)
    return _seconds(first, begins), _seconds(second, ends)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content and what follows of the first element. Raises ``IndexError`` or ``ValueError``."""
    length, start = data[1], 2
    if length & 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("it is cut off")
    return data[0], data[start : start + length], data[start + length :]


def _seconds(kind: int, text: bytes) -> float:
    """A date in seconds since 1970. Two digits of a year are those of 1950 to 2049 (RFC 5280, section 4.1.2.5.1)."""
    said = text.decode("ascii")
    if kind == _UTC_TIME:
        said = ("19" if int(said[:2]) >= 50 else "20") + said
    return float(calendar.timegm(time.strptime(said, "%Y%m%d%H%M%SZ")))
