"""Reads requests of the Redis protocol (RESP) from a connection: arrays of bulk strings, and inline commands.

hiredis parses what clients send. This module checks what hiredis does not, since it is made for replies: that a request
holds strings only, and that its lengths stay within limits. The errors are those of Redis (``networking.c``).

hiredis makes room for all elements of an array as soon as it reads their number. So bytes that may hold a large number
never get there: they are parsed here.
"""

import re

import hiredis

BULK_MOST = 4 * 1024 * 1024
"""Bytes of one argument that are read at all; a session is smaller (``limits.session_bytes``)."""
REQUEST_MOST = 8 * 1024 * 1024
ARGUMENTS_MOST = 99_999
_MANY_ARGUMENTS = re.compile(rb"\*\d{6}")
LINE_MOST = 64 * 1024
"""Bytes of an inline command, and of a line with a length."""
STRANGER_BULK_MOST = 16 * 1024
STRANGER_ARGUMENTS_MOST = 10
"""The same for a client that has not shown its password yet."""
_SPACE = b" \t\n\v\f\r\0"
_COUNTED = 1000
_DIGITS = [len(str(length)) for length in range(_COUNTED)]
_FRAMED = [length + _DIGITS[length] + 5 for length in range(_COUNTED)]
"""The bytes of an argument of each length in its shortest form."""
_ESCAPES = {b"n"[0]: b"\n", b"r"[0]: b"\r", b"t"[0]: b"\t", b"b"[0]: b"\b", b"a"[0]: b"\a"}

Request = list[bytes]


class BadProtocol(Exception):
    """What a client sent is not RESP; the connection must be closed after this error."""


class RequestReader:
    """Collects the bytes of one connection. ``trusted``: the client needs no password, or has shown it."""

    def __init__(self, *, trusted: bool) -> None:
        self.trusted = trusted
        self._reader = hiredis.Reader()
        self._tail = b""
        self._slow = False

    def feed(self, data: bytes) -> tuple[list[Request], BadProtocol | None]:
        """The requests that are complete with ``data``, and the error after them, if there is one."""
        chunk = self._tail + data if self._tail else data
        requests: list[Request] = []
        if self.trusted and not self._slow and chunk.startswith(b"*") and not _MANY_ARGUMENTS.search(chunk):
            self._reader.feed(data)
            if self._parse_fast(requests) == len(chunk):
                self._tail = b""
                return requests, None
        return requests, self._parse_rest(chunk, requests)

    def _parse_fast(self, requests: list[Request]) -> int:
        """Take what hiredis has; returns the bytes that this is in its shortest form, -1 if something is no request."""
        gets, size = self._reader.gets, 0
        try:
            while (request := gets()) is not False:
                if type(request) is not list or not request:
                    return -1
                count = len(request)
                size += 3 + (_DIGITS[count] if count < _COUNTED else len(str(count)))
                for part in request:
                    if type(part) is not bytes:
                        return -1
                    length = len(part)
                    size += _FRAMED[length] if length < _COUNTED else length + len(str(length)) + 5
                requests.append(request)
        except hiredis.HiredisError:
            return -1
        return size

    def _parse_rest(self, chunk: bytes, requests: list[Request]) -> BadProtocol | None:
        """Find where the requests that were taken end in ``chunk``, and take what comes after them, step by step."""
        position, known = 0, len(requests)
        try:
            while position < len(chunk):
                request, position_after = self._one(chunk, position)
                if position_after == position:
                    break
                position = position_after
                if not request:
                    continue
                if known:
                    known -= 1
                else:
                    requests.append(request)
        except BadProtocol as error:
            return error
        self._tail = chunk[position:]
        self._reader = hiredis.Reader()
        self._slow = bool(_MANY_ARGUMENTS.search(self._tail))
        if self._tail.startswith(b"*") and not self._slow:
            self._reader.feed(self._tail)
        if len(self._tail) > REQUEST_MOST:
            return BadProtocol("Protocol error: too big request")
        return None

    def _one(self, chunk: bytes, start: int) -> tuple[Request, int]:
        """One request and where it ends; ``start`` itself if it is not complete. Empty requests are ignored."""
        if chunk[start] != b"*"[0]:
            return _inline(chunk, start)
        end = _line_end(chunk, start, "mbulk")
        if end < 0:
            return [], start
        count = _number(chunk[start + 1 : end])
        if count is None or count > ARGUMENTS_MOST:
            raise BadProtocol("Protocol error: invalid multibulk length")
        if not self.trusted and count > STRANGER_ARGUMENTS_MOST:
            raise BadProtocol("Protocol error: unauthenticated multibulk length")
        position = end + 2
        request: Request = []
        for _ in range(max(count, 0)):
            if position >= len(chunk):
                return [], start
            end = _line_end(chunk, position, "bulk")
            if end < 0:
                return [], start
            length = self._bulk_length(chunk, position, end)
            position = end + 2
            if len(chunk) < position + length + 2:
                return [], start
            request.append(chunk[position : position + length])
            position += length + 2
        return request, position

    def _bulk_length(self, chunk: bytes, position: int, end: int) -> int:
        if chunk[position] != b"$"[0]:
            raise BadProtocol(f"Protocol error: expected '$', got '{_shown(chunk[position])}'")
        length = _number(chunk[position + 1 : end])
        if length is None or not 0 <= length <= BULK_MOST:
            raise BadProtocol("Protocol error: invalid bulk length")
        if not self.trusted and length > STRANGER_BULK_MOST:
            raise BadProtocol("Protocol error: unauthenticated bulk length")
        return length


def _shown(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 else " "


def _number(digits: bytes) -> int | None:
    """A whole number of at most 64 bits, as Redis reads it."""
    if not 0 < len(digits) <= 20 or not digits.removeprefix(b"-").isdigit() or not digits.isascii():
        return None
    return int(digits)


def _line_end(chunk: bytes, start: int, what: str) -> int:
    """Where the line that begins at ``start`` ends; -1 if it is not complete."""
    end = chunk.find(b"\r", start, start + LINE_MOST + 1)
    if end < 0 and len(chunk) - start > LINE_MOST:
        raise BadProtocol(f"Protocol error: too big {what} count string")
    return end if end >= 0 and end + 1 < len(chunk) else -1


def _inline(chunk: bytes, start: int) -> tuple[Request, int]:
    end = chunk.find(b"\n", start, start + LINE_MOST + 1)
    if end < 0:
        if len(chunk) - start > LINE_MOST:
            raise BadProtocol("Protocol error: too big inline request")
        return [], start
    return _words(chunk[start:end].removesuffix(b"\r")), end + 1


def _words(line: bytes) -> Request:
    """The arguments of an inline command: separated by spaces, and perhaps quoted (Redis: ``sdssplitargs``)."""
    words: Request = []
    position = 0
    while True:
        while position < len(line) and line[position] in _SPACE:
            position += 1
        if position == len(line):
            return words
        word, position = _word(line, position)
        words.append(word)


def _word(line: bytes, position: int) -> tuple[bytes, int]:
    word, quote = bytearray(), 0
    while position < len(line):
        byte = line[position]
        if quote:
            if byte == quote:
                after = line[position + 1 : position + 2]
                if after and after not in _SPACE:
                    raise BadProtocol("Protocol error: unbalanced quotes in request")
                return bytes(word), position + 1
            if byte == b"\\"[0] and position + 1 < len(line):
                taken, position = _escaped(line, position, quote)
                word += taken
                continue
        elif byte in _SPACE:
            return bytes(word), position
        elif byte in b"\"'":
            quote = byte
            position += 1
            continue
        word.append(byte)
        position += 1
    if quote:
        raise BadProtocol("Protocol error: unbalanced quotes in request")
    return bytes(word), position


def _escaped(line: bytes, position: int, quote: int) -> tuple[bytes, int]:
    """The bytes that the backslash at ``position`` stands for with its successors, and where they end."""
    following = line[position + 1]
    if quote == b"'"[0]:
        return (b"'", position + 2) if following == quote else (b"\\", position + 1)
    digits = line[position + 2 : position + 4]
    if following == b"x"[0] and len(digits) == 2 and all(digit in b"0123456789abcdefABCDEF" for digit in digits):
        return bytes([int(digits, 16)]), position + 4
    return _ESCAPES.get(following, bytes([following])), position + 2
