"""Compares our commands with those of a real Redis, byte by byte.

What may differ: remaining times by the moment at which they are asked for; the order of the members of a set, which
Redis has by its way of storing it, and the order of fields of a hash that was large at some time (a small one has the
order of insertion in both); the figures of MEMORY USAGE and OBJECT IDLETIME; the place in a script at which an error
came.
"""

import re
import time
from collections.abc import Sequence
from itertools import chain

from tests.statesync.redis.generated import Argv
from tests.statesync.redis.server import RawConnection, end_of_reply
from understudy.statesync.redis.commands import KeyCommand, KeyCommands, apply, is_read, parse
from understudy.statesync.redis.reply import RedisError, encode
from understudy.statesync.redis.value import Kind, Value, decode_hash

TOLERANCE = {b"TTL": 30, b"PTTL": 30_000, b"EXPIRETIME": 30, b"PEXPIRETIME": 30_000}
"""Command -> by how much two replies may differ on a slow machine; but dates that were set as dates are exact."""
SET_AS_DATES = {b"EXPIRETIME": range(3_900_000_000, 6_000_000_000)}
SET_AS_DATES[b"PEXPIRETIME"] = range(3_900_000_000_000, 6_000_000_000_000)
OF_HASHES = {b"HGETALL", b"HKEYS", b"HVALS"}
LONGEST_IN_ORDER = 64


class Peer:
    """A real Redis, and beside it a dictionary of values that our commands change."""

    def __init__(self, connection: RawConnection, protocol: int) -> None:
        self.connection = connection
        self.protocol = protocol
        self.values: dict[bytes, Value | None] = {}
        self.once_large: set[bytes] = set()

    def run(self, argv: Argv, now_ms: int) -> bytes:
        """Our reply."""
        command = parse(argv)
        if isinstance(command, RedisError):
            return encode(command, self.protocol)
        if isinstance(command, KeyCommand):
            return encode(self._apply(command, now_ms), self.protocol)
        assert isinstance(command, KeyCommands)
        return encode(command.combine([self._apply(part, now_ms) for part in command.parts]), self.protocol)

    def _apply(self, command: KeyCommand, now_ms: int) -> object:
        before = self.values.get(command.key)
        if before is not None and before.expires is not None and before.expires <= now_ms:
            before = None
        reply, after = apply(command, before, now_ms)
        assert after is before or not (is_read(command) or isinstance(reply, RedisError))
        self.values[command.key] = after
        if after is None:
            self.once_large.discard(command.key)
        elif after.kind is Kind.HASH and len(max(chain(*decode_hash(after.data).items()), key=len)) > LONGEST_IN_ORDER:
            self.once_large.add(command.key)
        return reply

    def check(self, commands: Sequence[Argv]) -> None:
        """Both give the same replies to these commands."""
        self.values.clear()
        self.once_large.clear()
        theirs = self.connection.ask([(b"FLUSHALL",), *commands])[1:]
        now_ms = time.time_ns() // 1_000_000
        for argv, their in zip(commands, theirs, strict=True):
            our = self.run(argv, now_ms)
            assert self.same(argv, our, their), f"{argv}: {our!r} instead of {their!r}"

    def same(self, argv: Argv, our: bytes, their: bytes) -> bool:
        if our == their:
            return True
        name = argv[0].upper()
        if name == b"SMEMBERS" or (name in OF_HASHES and argv[1] in self.once_large):
            return items_of(our, pairs=name == b"HGETALL") == items_of(their, pairs=name == b"HGETALL")
        if name in {b"MEMORY", b"OBJECT"}:
            return our[:1] == their[:1] == b":"
        if name == b"EVAL" and their[:1] == b"-":
            return our == re.sub(rb" script: .*\r\n", b"\r\n", their)
        if our[:1] != b":" or their[:1] != b":" or int(our[1:]) <= 0 or int(their[1:]) in SET_AS_DATES.get(name, ()):
            return False
        return abs(int(our[1:]) - int(their[1:])) <= TOLERANCE.get(name, 0)


def items_of(reply: bytes, *, pairs: bool) -> tuple[bytes, list[object]]:
    """The head of an array, and its items (or pairs of items) in some fixed order."""
    at = reply.index(b"\r\n") + 2
    head, items = reply[:at], []
    while at < len(reply):
        end = end_of_reply(reply, at)
        assert end is not None
        items.append(reply[at:end])
        at = end
    return head, sorted(zip(items[::2], items[1::2], strict=True) if pairs else items)
