"""Carries out the commands of clients as session calls, at the owner of each key.

A command on one key is one call of :class:`~understudy.proxy.sessions.service.SessionService`, so it is fenced,
forwarded and carried out once like every other. A command on several keys is one call for each of them.
"""

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from understudy.proxy.http.problems import PROBLEM_TYPE, Reply
from understudy.proxy.redis.client import Client
from understudy.proxy.redis.copies import CopyCount
from understudy.proxy.redis.scan import KeyScan
from understudy.proxy.sessions.call import Call, key_text
from understudy.proxy.sessions.owner_writes import Begun, Then
from understudy.proxy.sessions.service import CALL_TIMEOUT, SessionService
from understudy.statesync.etcd.client import EtcdError
from understudy.statesync.http.headers import DURABILITY_HEADER
from understudy.statesync.redis.command import KeyCommand, KeyCommands
from understudy.statesync.redis.commands import is_read
from understudy.statesync.redis.reply import OK, RedisError, encode
from understudy.statesync.sessions.command_batch import CommandBatch, RawValue, copied, removed, taken
from understudy.statesync.sessions.overwrites import LEARNING, VALUE_HEADER, replaces_value, version_after

logger = logging.getLogger(__name__)

PAUSE = 0.01
"""Seconds between two attempts at a command that this member or another cannot carry out yet."""
UNHEARD_SECONDS = 60.0
"""Seconds for which an answer that a client did not get is remembered."""
UNHEARD_MOST = 1000
COUNTED = ("memory", "commit", "other")
"""How commands are carried out: from memory, by a commit of this member alone, or in any other way."""
_WON = frozenset({b"+OK\r\n", b":1\r\n"})
_CODES = {"session-too-large": "OOM", "too-many-sessions": "OOM", "too-many-bytes": "OOM", "overwrite": "CONFLICT"}
"""The first word of an error, by the kind of the problem; others begin with ERR."""
_MAY_HAVE_WRITTEN = (200, 503)
"""The replies after which the value may be another one, of a version that was not told."""
_SET_NX = frozenset({b"SET", b"SETNX"})
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Executor:
    """Carries out commands; one per port."""

    def __init__(self, service: SessionService, scan: KeyScan, copies: CopyCount) -> None:
        self._service = service
        self._scan = scan
        self._copies = copies
        self.counts = dict.fromkeys(COUNTED, 0)
        self._turn = asyncio.Lock()
        self._unheard: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()

    def read_now(self, command: KeyCommand, client: Client) -> bytes | None:
        """The answer of a command that only reads, if this member's memory can give it at once; None if not."""
        found = self._service.read_now(command, client.protocol)
        if found is None:
            return None
        self.counts["memory"] += 1
        answer, version = found
        if version is not None and command.name in LEARNING:
            client.knows(command.key, version)
        return answer

    async def one(self, command: KeyCommand, client: Client) -> bytes:
        """The answer of a command on one key."""
        self._note(command, client)
        value = _value_set_if_absent(command)
        if value is not None and await self._won_unheard(command, value, client):
            return encode(OK if command.name == b"SET" else 1, client.protocol)
        return await self._call(CommandBatch((command,), client.protocol), client)

    def write_now(self, command: KeyCommand, client: Client, then: Then) -> Begun | bytes | None:
        """Begin a write that this member can carry out at once, or answer it; None, with nothing done, for others.

        ``then`` is called when a write that was begun has ended.
        """
        if client.durability or self._turn.locked() or (self._unheard and command.name in _SET_NX):
            return None
        call = Call.of_commands(CommandBatch((command,), client.protocol), _NO_HEADERS, seen=_seen(client, command))
        begun = self._service.write_now(call, then)
        if begun is None:
            return None
        if type(begun) is bytes:
            self.counts["memory"] += 1
        else:
            self.counts["commit"] += 1
            client.written = call.key
        return begun

    def written(self, begun: Begun, key: bytes, client: Client) -> bytes:
        """The answer to a write that is acknowledged."""
        self._service.written(begun)
        if client.version_of(key) is not None:
            client.knows(key, version_after(begun.outcome.session))
        return begun.outcome.reply

    async def settle(self, begun: Begun, client: Client) -> bytes:
        """The answer to a write that was begun and has failed, or takes too long."""
        reply = await self._service.settle(begun)
        if begun.call.batch is not None:
            _learn(client, begun.call.batch, reply)
        return reply.body if _is_answer(reply) else encode(error_of(reply), client.protocol)

    async def transaction(self, commands: tuple[KeyCommand, ...], client: Client) -> bytes:
        """The answer of ``EXEC`` for commands on one key."""
        self._note(commands[0], client)
        return await self._call(CommandBatch(commands, client.protocol, exec=True), client)

    async def several(self, commands: KeyCommands, client: Client) -> bytes:
        """The answer of a command on several keys. It is carried out for each of them alone, not for all or none."""
        replies: list[object] = [None] * len(commands.parts)
        places: dict[bytes, list[int]] = {}
        for place, part in enumerate(commands.parts):
            places.setdefault(part.key, []).append(place)

        async def on_one_key(its: list[int]) -> None:
            for place in its:
                replies[place] = await self._parsed(commands.parts[place], client)

        await asyncio.gather(*(on_one_key(its) for its in places.values()))
        failed = next((reply for reply in replies if isinstance(reply, RedisError)), None)
        return encode(failed or commands.combine(replies), client.protocol)

    async def rename(self, source: bytes, target: bytes, client: Client, *, only_new: bool) -> bytes:
        """Move a value to another key, perhaps of another member: copied first, then removed, so it is never lost.

        If this member fails between the two, both keys have the value.
        """
        made_here = False
        while True:
            value = await self._raw(taken(source), client)
            if isinstance(value, RedisError):
                return encode(value, client.protocol)
            if value is None:
                return encode(RedisError("ERR no such key"), client.protocol)
            if source != target:
                made = await self._parsed(copied(target, value, only_new=only_new and not made_here), client)
                if made != 1:
                    return encode(made, client.protocol)
                made_here = True
                gone = await self._parsed(removed(source, value), client)
                if gone == 0:
                    continue  # somebody has written to the source meanwhile
                if isinstance(gone, RedisError):
                    return encode(gone, client.protocol)
            return encode((0 if source == target else 1) if only_new else OK, client.protocol)

    async def of_all_keys(self, name: bytes, args: Sequence[bytes], client: Client) -> bytes:
        """The answer of ``SCAN``, ``DBSIZE`` or ``WAIT``."""
        try:
            if name == b"SCAN":
                answer = await self._scan.scan(args)
            elif name == b"DBSIZE":
                answer = await self._scan.count()
            else:
                answer = await self._copies.wait(args, client.written)
        except EtcdError as error:
            answer = RedisError(f"ERR not-ready: etcd cannot be read: {error}")
        return encode(answer, client.protocol)

    def unheard(self, command: KeyCommand, answer: bytes) -> None:
        """A client has gone without the answer to a command: who sets the same value again may be told that it won."""
        value = _value_set_if_absent(command)
        if value is not None and answer in _WON:
            self._unheard[command.key, value] = time.monotonic()
            if len(self._unheard) > UNHEARD_MOST:
                self._unheard.popitem(last=False)

    async def _won_unheard(self, command: KeyCommand, value: bytes, client: Client) -> bool:
        """Whether a ``SET NX`` repeats one that has won and whose client did not hear of it. One repeat is told so."""
        at = self._unheard.pop((command.key, value), None)
        if at is None or time.monotonic() - at > UNHEARD_SECONDS:
            return False
        stands = KeyCommand(b"GET", command.key, ())
        return await self._call(CommandBatch((stands,), 2), client) == encode(value, 2)

    @staticmethod
    def _note(command: KeyCommand, client: Client) -> None:
        if not is_read(command):
            client.written = key_text(command.key)

    async def _parsed(self, command: KeyCommand, client: Client) -> object:
        """The answer of a command as a value."""
        batch = CommandBatch((command,), 2)
        self.counts["other"] += 1
        if not batch.reads:
            client.written = key_text(command.key)
        reply = await self._carried_out(batch, client)
        return batch.parse_reply(reply.body) if _is_answer(reply) else error_of(reply)

    async def _raw(self, command: KeyCommand, client: Client) -> RawValue | RedisError | None:
        answer = await self._parsed(command, client)
        return answer if isinstance(answer, RedisError) else RawValue.of(answer)

    async def _call(self, batch: CommandBatch, client: Client) -> bytes:
        self.counts["other"] += 1
        reply = await self._carried_out(batch, client)
        return reply.body if _is_answer(reply) else encode(error_of(reply), client.protocol)

    async def _carried_out(self, batch: CommandBatch, client: Client) -> Reply:
        reply = await self._handled(Call.of_commands(batch, _headers(client), seen=_seen(client, *batch.commands)))
        _learn(client, batch, reply)
        return reply

    async def _handled(self, call: Call) -> Reply:
        """The session service's reply. Commands wait while a member starts, or while commits lag behind."""
        until = time.monotonic() + CALL_TIMEOUT
        while True:
            if not call.reads:
                await self._take_turn(until)
            reply = await self._service.handle(call)
            if not _may_pass(reply) or time.monotonic() >= until:
                return reply
            await asyncio.sleep(PAUSE)

    async def _take_turn(self, until: float) -> None:
        """Wait until this member takes writes, or until ``until`` (monotonic). Writes wait in their order."""
        if not self._turn.locked() and self._service.takes_writes():
            return
        async with self._turn:
            while not self._service.takes_writes() and time.monotonic() < until:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(PAUSE)


def _headers(client: Client) -> Mapping[str, str]:
    return {DURABILITY_HEADER: client.durability} if client.durability else _NO_HEADERS


def _seen(client: Client, *commands: KeyCommand) -> int | None:
    """The version that the client has read of a value which it replaces; None if it has not read it."""
    seen = client.version_of(commands[0].key)
    return seen if seen is not None and any(map(replaces_value, commands)) else None


def _learn(client: Client, batch: CommandBatch, reply: Reply) -> None:
    """Note what the client knows of the value after these commands."""
    if client.version_of(batch.key) is not None or any(command.name in LEARNING for command in batch.commands):
        version = reply.headers.get(VALUE_HEADER)
        if version is not None and version.isdigit():
            client.knows(batch.key, int(version))
        elif not batch.reads and reply.status in _MAY_HAVE_WRITTEN:
            client.forget(batch.key)


def _value_set_if_absent(command: KeyCommand) -> bytes | None:
    """The value that a command sets if there is none; None for all other commands."""
    if command.name not in _SET_NX:
        return None
    if command.name == b"SET" and not any(arg.upper() == b"NX" for arg in command.args[1:]):
        return None
    return command.args[0]


def _may_pass(reply: Reply) -> bool:
    """Whether nothing was done and the reason lasts for a moment: commits lag behind, or a member is starting."""
    return reply.status == 503 and (b"/overloaded" in reply.body or b"/not-ready" in reply.body)


def _is_answer(reply: Reply) -> bool:
    return reply.status == 200 and reply.headers.get("Content-Type") != PROBLEM_TYPE


def error_of(reply: Reply) -> RedisError:
    """A problem of the session service as Redis's clients see errors."""
    try:
        problem = json.loads(reply.body)
        kind, detail = str(problem["type"]).rpartition("/")[2], str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        return RedisError(f"ERR the owner of the key answered {reply.status}")
    code = _CODES.get(kind, "ERR")
    return RedisError(f"{code} {kind}: {detail}")
