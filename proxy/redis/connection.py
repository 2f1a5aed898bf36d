"""One connection of the Redis port: requests in, answers out, in their order.

A read that memory can answer is answered at once. All other commands wait for etcd or for another member, many at a
time: only commands on the same key wait for one another. The answers leave in the order of the commands. A client that
does not read its answers, or sends many commands at once, is not read from until it has caught up.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec

from understudy.proxy.redis.client import (
    BEFORE_AUTH,
    CONNECTION_COMMANDS,
    NO_AUTH,
    Client,
    Transaction,
    wrong_arguments,
)
from understudy.proxy.redis.requests import BadProtocol, Request, RequestReader
from understudy.proxy.sessions.owner_writes import Begun
from understudy.statesync.redis.command import KeyCommand, KeyCommands
from understudy.statesync.redis.commands import is_read, parse
from understudy.statesync.redis.reply import OK, Push, RedisError, Simple, encode

if TYPE_CHECKING:
    from understudy.proxy.redis.port import RedisPort

logger = logging.getLogger(__name__)

PENDING_MOST = 512
"""Commands of one connection that are under way at a time; the others stay unread."""
TRANSACTION_MOST = 1000
"""Commands between ``MULTI`` and ``EXEC``."""
OUTPUT_AT_ONCE = 256 * 1024
"""Bytes of answers that are collected before they are sent."""
NOTICE_AFTER = 0.1
"""Seconds after which a client that asked for notices hears that a command waits."""
NOTICE_TTL = 10
"""Seconds for which the client should be patient then."""
_ARGUMENTS = {b"SCAN": (1, 1000), b"DBSIZE": (0, 0), b"WAIT": (2, 2)}
"""How many arguments the commands on all keys take: at least, and at most."""
_QUEUED = Simple("QUEUED")
Work = Coroutine[object, object, bytes]


class Pending(msgspec.Struct, eq=False):
    """A command under way; ``answer`` is empty until it is known.

    Either it has ``begun`` as a write that its owner was sent, or it is carried out by ``task``.
    """

    keys: tuple[bytes, ...]
    command: KeyCommand | None = None
    answer: bytes = b""
    begun: Begun | None = None
    task: "asyncio.Task[None] | None" = None
    done: bool = False
    waiters: "list[asyncio.Future[None]] | None" = None


class Connection(asyncio.BufferedProtocol):
    """One connection; the port makes them.

    Its input arrives in a buffer of the port. Without that, asyncio would allocate 256 KiB for each read.
    """

    def __init__(self, port: "RedisPort") -> None:
        self._port = port
        self._executor = port.executor
        self._input = port.input
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._requests: deque[Request] = deque()
        self._fault: BadProtocol | None = None
        self._pending: deque[Pending] = deque()
        self._last: dict[bytes, Pending] = {}
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._choked = self._paused = self._sending = False
        self._notice: asyncio.TimerHandle | None = None
        self._noticed = 0
        self._special: Mapping[bytes, Callable[[Request], None]] = {
            b"MULTI": self._multi,
            b"EXEC": self._exec,
            b"DISCARD": self._discard,
            b"RENAME": self._rename,
            b"RENAMENX": self._rename,
            b"SCAN": self._of_all_keys,
            b"DBSIZE": self._of_all_keys,
            b"WAIT": self._of_all_keys,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the client; close the connection if there are too many."""
        self._transport = stream = cast("asyncio.Transport", transport)
        self.client = Client(*self._port.admit(self, stream))
        self._reader = RequestReader(trusted=self.client.trusted)
        if self._port.full:
            stream.write(b"-ERR max number of clients reached\r\n")
            stream.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Forget the client. Commands that have not begun are not carried out; the others end by themselves."""
        self._port.forget(self)
        self._requests.clear()
        if self._notice is not None:
            self._notice.cancel()
        for pending in self._pending:
            if pending.answer and pending.command is not None:
                self._executor.unheard(pending.command, pending.answer)
        self._transport = None

    def get_buffer(self, _: int) -> memoryview:
        """Where the next input goes."""
        return self._input

    def buffer_updated(self, nbytes: int) -> None:
        """Take requests in, and carry them out as far as possible."""
        if self._port.stale(self.client.since):
            logger.warning("a Redis client is disconnected: its commands have waited while this process stood still")
            self.abort()
            return
        requests, self._fault = self._reader.feed(bytes(self._input[:nbytes]))
        self._requests.extend(requests)
        self._work(later=self._port.answers_later())

    def pause_writing(self) -> None:
        """The client does not read its answers: carry out nothing more for it."""
        self._choked = True

    def resume_writing(self) -> None:
        """The client reads again."""
        self._choked = False
        self._work()

    def close(self) -> None:
        """End the connection when what is under way is answered."""
        self.client.ends = True
        self._requests.clear()
        self._send()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _work(self, *, later: bool = False) -> None:
        """Carry out requests until there is none, or too much is under way; ``later``: answers may be sent later."""
        requests = self._requests
        while requests and not self._choked and len(self._pending) < PENDING_MOST and not self.client.ends:
            self._take(requests.popleft())
            if self._out_bytes > OUTPUT_AT_ONCE:
                self._send()
        if not requests and self._fault is not None and not self.client.ends:
            self._say(RedisError(f"ERR {self._fault}"))
            self.client.ends = True
        if later and self._out and not self.client.ends:
            self._go_on_soon()
        else:
            self._send()
        self._read_on_or_not()

    def _read_on_or_not(self) -> None:
        full = bool(self._requests)
        if full == self._paused or self._transport is None or self._transport.is_closing():
            return
        self._paused = full
        if full:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _take(self, request: Request) -> None:
        """Carry out one request, or begin to."""
        client = self.client
        if not client.trusted and request[0].upper() not in BEFORE_AUTH:
            self._say(NO_AUTH)
            return
        command = None
        if client.transaction is None:
            command = parse(request)
            if type(command) is KeyCommand:
                self._one(command)
                return
        name = request[0].upper()
        special = self._special.get(name)
        if special is not None:
            special(request)
        elif client.transaction is not None:
            self._queue(client.transaction, request)
        elif name in CONNECTION_COMMANDS:
            self._connection_command(name, request)
        elif isinstance(command, KeyCommands):
            keys = tuple(part.key for part in command.parts)
            self._begin(keys, None, self._executor.several(command, client))
        else:
            self._say(command)

    def _one(self, command: KeyCommand) -> None:
        key = command.key
        if key not in self._last:
            if is_read(command):
                answer = self._executor.read_now(command, self.client)
                if answer is not None:
                    self._add(answer)
                    return
            else:
                pending = Pending((key,), command)
                begun = self._executor.write_now(command, self.client, partial(self._ended, pending))
                if type(begun) is bytes:
                    self._add(begun)
                    return
                if type(begun) is Begun:
                    self._await_end(pending, begun)
                    return
        self._begin((key,), command, self._executor.one(command, self.client))

    def _await_end(self, pending: Pending, begun: Begun) -> None:
        """Answer a write when it is acknowledged, or when it took too long."""
        pending.begun = begun
        self._last[pending.keys[0]] = pending
        self._pending.append(pending)
        self._port.limit()
        self._notice_later(pending)

    def _ended(self, pending: Pending, begun: Begun, acknowledged: bool) -> None:
        if pending.task is not None or pending.done:
            return  # it took too long
        if not acknowledged:
            self._settle(pending, begun)
            return
        pending.answer = self._executor.written(begun, pending.keys[0], self.client)
        self._done(pending)

    def settle_late(self, late: float) -> bool:
        """Settle the writes that began at ``late`` (monotonic) or earlier; whether later ones are under way."""
        for pending in self._pending:
            if pending.begun is not None and not pending.done and pending.task is None:
                if pending.begun.write.at > late:
                    return True
                self._settle(pending, pending.begun)
        return False

    def _settle(self, pending: Pending, begun: Begun) -> None:
        """Find out what to answer to a write that has failed or takes too long."""
        if pending.task is None and not pending.done:
            work = self._executor.settle(begun, self.client)
            pending.task = self._loop.create_task(self._carry_out(pending, set(), work))

    def _connection_command(self, name: bytes, request: Request) -> None:
        arity, handler = CONNECTION_COMMANDS[name]
        if len(request) != arity if arity > 0 else len(request) < -arity:
            self._say(wrong_arguments(name.decode().lower()))
            return
        client = self.client
        try:
            reply = handler(client, request[1:], self._port.server)
        except Exception:
            logger.exception("the command %s failed", name.decode())
            reply = RedisError("ERR the sidecar failed; its log says why")
        self._reader.trusted = client.trusted
        if name in (b"SUBSCRIBE", b"UNSUBSCRIBE") and isinstance(reply, list):
            reply = Push(tuple(reply))
        self._say(reply)

    def _queue(self, transaction: Transaction, request: Request) -> None:
        """Add a command to the transaction. All its commands are on one key: one session is written at a time."""
        command = parse(request)
        if isinstance(command, KeyCommands) and len(command.parts) == 1:
            command = RedisError("ERR use the form of the command for one key in a transaction; see docs/redis.md")
        if isinstance(command, KeyCommands) or (
            isinstance(command, KeyCommand) and transaction.commands and transaction.commands[0].key != command.key
        ):
            command = RedisError("CROSSSLOT a transaction has commands on one key only; see docs/redis.md")
        if len(transaction.commands) >= TRANSACTION_MOST:
            command = RedisError(f"ERR a transaction has at most {TRANSACTION_MOST} commands")
        if isinstance(command, RedisError):
            transaction.failed = True
            self._say(command)
        else:
            transaction.commands.append(command)
            self._say(_QUEUED)

    def _multi(self, _: Request) -> None:
        if self.client.transaction is not None:
            self._say(RedisError("ERR MULTI calls can not be nested"))
            return
        self.client.transaction = Transaction()
        self._say(OK)

    def _exec(self, _: Request) -> None:
        transaction, self.client.transaction = self.client.transaction, None
        if transaction is None:
            self._say(RedisError("ERR EXEC without MULTI"))
        elif transaction.failed:
            self._say(RedisError("EXECABORT Transaction discarded because of previous errors."))
        elif not transaction.commands:
            self._say([])
        else:
            commands = tuple(transaction.commands)
            self._begin((commands[0].key,), None, self._executor.transaction(commands, self.client))

    def _discard(self, _: Request) -> None:
        transaction, self.client.transaction = self.client.transaction, None
        self._say(RedisError("ERR DISCARD without MULTI") if transaction is None else OK)

    def _rename(self, request: Request) -> None:
        name = request[0].upper()
        if self.client.transaction is not None:
            self.client.transaction.failed = True
            self._say(RedisError("CROSSSLOT a transaction has commands on one key only; see docs/redis.md"))
        elif len(request) != 3:
            self._say(wrong_arguments(name.decode().lower()))
        else:
            source, target = request[1:]
            only_new = name == b"RENAMENX"
            work = self._executor.rename(source, target, self.client, only_new=only_new)
            self._begin((source, target), None, work)

    def _of_all_keys(self, request: Request) -> None:
        """Carry out a command that is not about a key when all earlier ones are done; later ones do not wait for it."""
        name, args = request[0].upper(), request[1:]
        least, most = _ARGUMENTS[name]
        if self.client.transaction is not None:
            self.client.transaction.failed = True
            self._say(RedisError("CROSSSLOT a transaction has commands on one key only; see docs/redis.md"))
        elif not least <= len(args) <= most:
            self._say(wrong_arguments(name.decode().lower()))
        else:
            earlier = {key for pending in self._pending if not pending.answer for key in pending.keys}
            self._begin(tuple(earlier), None, self._executor.of_all_keys(name, args, self.client))

    def _begin(self, keys: tuple[bytes, ...], command: KeyCommand | None, work: Work) -> None:
        """Carry out ``work`` when the earlier commands on these keys are done."""
        pending = Pending(keys, command)
        last = self._last
        before = {earlier for key in keys if (earlier := last.get(key)) is not None}
        for key in keys:
            last[key] = pending
        self._pending.append(pending)
        pending.task = self._loop.create_task(self._carry_out(pending, before, work))
        self._notice_later(pending)

    def _notice_later(self, pending: Pending) -> None:
        if self.client.notices and self._notice is None and self.client.protocol == 3:
            self._notice = self._loop.call_later(NOTICE_AFTER, self._say_that_it_waits, pending)

    async def _after(self, earlier: Pending) -> None:
        """Wait until an earlier command is done."""
        if not earlier.done:
            waiter = self._loop.create_future()
            earlier.waiters = [*(earlier.waiters or ()), waiter]
            await waiter

    async def _carry_out(self, pending: Pending, before: set[Pending], work: Work) -> None:
        try:
            for earlier in before:
                await self._after(earlier)
            if self._transport is None:
                work.close()
                return
            pending.answer = await work
        except Exception:
            logger.exception("a Redis command failed")
            pending.answer = encode(RedisError("ERR the sidecar failed; its log says why"), 2)
        finally:
            self._done(pending)

    def _done(self, pending: Pending) -> None:
        """A command is answered, or was given up."""
        pending.task, pending.done = None, True
        for key in pending.keys:
            if self._last.get(key) is pending:
                del self._last[key]
        if self._transport is None and pending.command is not None and pending.answer:
            self._executor.unheard(pending.command, pending.answer)
        waiters, pending.waiters = pending.waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)
        self._go_on_soon()

    def _go_on_soon(self) -> None:
        if not self._sending:
            self._sending = True
            self._port.go_on_soon(self)

    def go_on(self) -> None:
        """Send what is answered by now, and carry out what waits."""
        self._sending = False
        if self._requests or self._fault is not None:
            self._work()
        else:
            self._send()

    def _say(self, value: object) -> None:
        self._add(encode(value, self.client.protocol))

    def _add(self, answer: bytes) -> None:
        """Add an answer after those that are not known yet."""
        if self._pending:
            self._pending.append(Pending((), None, answer))
        else:
            self._out.append(answer)
            self._out_bytes += len(answer)

    def _send(self) -> None:
        """Send the answers whose turn it is."""
        pending, out, transport = self._pending, self._out, self._transport
        while pending and pending[0].answer:
            out.append(pending.popleft().answer)
        if transport is None:
            return
        if out:
            transport.write(b"".join(out) if len(out) > 1 else out[0])
            out.clear()
            self._out_bytes = 0
        if self.client.ends and not pending:
            transport.close()

    def _say_that_it_waits(self, pending: Pending) -> None:
        """Tell a client that asked for it that a command waits, and later that it waits no more."""
        self._notice = None
        if self._transport is None:
            return
        if not pending.answer:
            self._port.notices += 1
            self._noticed = self._port.notices
            self._transport.write(encode(Push((b"FAILING_OVER", self._noticed, NOTICE_TTL)), 3))
            self._notice = self._loop.call_later(NOTICE_AFTER, self._say_that_it_goes_on, pending)

    def _say_that_it_goes_on(self, pending: Pending) -> None:
        self._notice = None
        if self._transport is None:
            return
        if pending.answer:
            self._transport.write(encode(Push((b"FAILED_OVER", self._noticed)), 3))
        else:
            self._notice = self._loop.call_later(NOTICE_AFTER, self._say_that_it_goes_on, pending)
