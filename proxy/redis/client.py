"""What the port knows of one client, and the commands that are about the connection and the server, not about keys.

Each function takes the client, the arguments of the command and the server, and returns the reply. What clients send
to shake hands, and which answers they need, was read from their sources: docs/redis.md lists them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from understudy.proxy.redis.info import Server, info_text
from understudy.statesync.redis.command import KeyCommand
from understudy.statesync.redis.commands import arities, known_script, load_script
from understudy.statesync.redis.reply import OK, RedisError, Simple, text_of

VERSION = "7.2.0"
"""The version of Redis that clients are told: they decide by it which commands they use."""
DURABILITY_NAME = b"understudy:durability="
"""The beginning of a connection's name that chooses the durability of its writes."""
NO_AUTH = RedisError("NOAUTH Authentication required.")
WRONG_PASSWORD = RedisError("WRONGPASS invalid username-password pair or user is disabled.")
_NO_CLUSTER = RedisError("ERR This instance has cluster support disabled")
_LONGEST_NAME = 256
CHANNELS_MOST = 100
SEEN_LEAST = 64
"""Values whose versions are remembered for a connection, at the least: those that it has read or written last."""


@dataclass(slots=True)
class Transaction:
    """The commands since ``MULTI``. ``failed``: one of them was refused, so ``EXEC`` will be, too."""

    commands: list[KeyCommand] = field(default_factory=list)
    failed: bool = False


@dataclass(slots=True, eq=False)
class Client:
    """One connection. ``since`` is monotonic; ``notices``: it asked for notices of maintenance.

    ``written`` is the key that it has written last. ``seen`` and ``seen_before`` are the versions of values that it
    knows, by their keys.
    """

    number: int
    address: str
    trusted: bool
    protocol: int = 2
    name: bytes = b""
    library: bytes = b""
    library_version: bytes = b""
    durability: str = ""
    notices: bool = False
    ends: bool = False
    written: str | None = None
    channels: set[bytes] = field(default_factory=set)
    transaction: Transaction | None = None
    since: float = field(default_factory=time.monotonic)
    seen: dict[bytes, int] = field(default_factory=dict)
    seen_before: dict[bytes, int] = field(default_factory=dict)

    def knows(self, key: bytes, version: int) -> None:
        """Note the version of a value that this client has read or written."""
        seen = self.seen
        seen[key] = version
        if len(seen) >= SEEN_LEAST:
            self.seen_before, self.seen = seen, {}

    def version_of(self, key: bytes) -> int | None:
        """The version of a value that this client knows; None if it knows none."""
        version = self.seen.get(key)
        return self.seen_before.get(key) if version is None else version

    def forget(self, key: bytes) -> None:
        """Forget the version of a value."""
        self.seen.pop(key, None)
        self.seen_before.pop(key, None)

    def reset(self, *, trusted: bool) -> None:
        """Go back to the state of a new connection (``RESET``)."""
        self.protocol, self.trusted, self.name, self.durability = 2, trusted, b"", ""
        self.transaction, self.notices = None, False
        self.channels.clear()
        self.seen.clear()
        self.seen_before.clear()


Handler = Callable[[Client, Sequence[bytes], Server], object]


def wrong_arguments(name: str) -> RedisError:
    """The error for a command with too few or too many arguments."""
    return RedisError(f"ERR wrong number of arguments for '{name}' command")


def _syntax() -> RedisError:
    return RedisError("ERR syntax error")


def _protocol_in(wanted: bytes) -> int | RedisError:
    if not wanted.removeprefix(b"-").isdigit():
        return RedisError("ERR Protocol version is not an integer or out of range")
    return int(wanted) if wanted in (b"2", b"3") else RedisError("NOPROTO unsupported protocol version")


def _hello(client: Client, args: Sequence[bytes], server: Server) -> object:
    rest = list(args)
    protocol = _protocol_in(rest.pop(0)) if rest else client.protocol
    if isinstance(protocol, RedisError):
        return protocol
    name: bytes | None = None
    trusted = client.trusted
    while rest:
        shown = text_of(rest[0])
        option = rest.pop(0).upper()
        if option == b"AUTH" and len(rest) >= 2:
            _, password, *rest = rest
            if not server.accepts(password):
                return WRONG_PASSWORD
            trusted = True
        elif option == b"SETNAME" and rest:
            name = rest.pop(0)
            if fault := _name_fault(name):
                return fault
        else:
            return RedisError(f"ERR Syntax error in HELLO option '{shown}'")
    if not trusted:
        return RedisError(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH "
            "<user> <pass> option can be used to authenticate the client and select the RESP protocol version at the "
            "same time"
        )
    client.trusted, client.protocol = True, protocol
    if name is not None:
        _take_name(client, name)
    return {
        b"server": b"redis",
        b"version": VERSION.encode(),
        b"proto": protocol,
        b"id": client.number,
        b"mode": b"standalone",
        b"role": b"master",
        b"modules": [],
    }


def _auth(client: Client, args: Sequence[bytes], server: Server) -> object:
    if len(args) not in (1, 2):
        return wrong_arguments("auth") if not args else _syntax()
    if server.open and len(args) == 1:
        return RedisError(
            "ERR AUTH <password> called without any password configured for the default user. "
            "Are you sure your configuration is correct?"
        )
    if not server.accepts(args[-1]):
        return WRONG_PASSWORD
    client.trusted = True
    return OK


def _ping(client: Client, args: Sequence[bytes], _: Server) -> object:
    if len(args) > 1:
        return wrong_arguments("ping")
    if client.channels and client.protocol == 2:
        return [b"pong", args[0] if args else b""]
    return args[0] if args else Simple("PONG")


def _echo(_: Client, args: Sequence[bytes], __: Server) -> object:
    return args[0]


def _select(_: Client, args: Sequence[bytes], __: Server) -> object:
    if not args[0].removeprefix(b"-").isdigit():
        return RedisError("ERR value is not an integer or out of range")
    if int(args[0]) != 0:
        return RedisError("ERR DB index is out of range: a pool is one database, 0; use a pool for each database")
    return OK


def _quit(client: Client, _: Sequence[bytes], __: Server) -> object:
    client.ends = True
    return OK


def _reset(client: Client, _: Sequence[bytes], server: Server) -> object:
    client.reset(trusted=server.open)
    return Simple("RESET")


def _name_fault(name: bytes) -> RedisError | None:
    if len(name) > _LONGEST_NAME or not all(33 <= byte <= 126 for byte in name):
        return RedisError("ERR Client names cannot contain spaces, newlines or special characters.")
    if name.startswith(DURABILITY_NAME) and name.removeprefix(DURABILITY_NAME) not in (b"sync", b"async", b"replicas"):
        return RedisError("ERR the durability in a client name is sync, async or replicas: understudy:durability=async")
    return None


def _take_name(client: Client, name: bytes) -> None:
    client.name = name
    client.durability = name.removeprefix(DURABILITY_NAME).decode() if name.startswith(DURABILITY_NAME) else ""


def _client(client: Client, args: Sequence[bytes], server: Server) -> object:
    what, rest = args[0].upper(), args[1:]
    handler = _CLIENT.get(what)
    if handler is None:
        shown = args[0].decode(errors="replace")
        return RedisError(f"ERR unknown subcommand '{shown}'. Try CLIENT HELP.")
    return handler(client, rest, server)


def _set_name(client: Client, args: Sequence[bytes], _: Server) -> object:
    if len(args) != 1:
        return wrong_arguments("client|setname")
    fault = _name_fault(args[0])
    if fault is None:
        _take_name(client, args[0])
    return fault or OK


def _set_info(client: Client, args: Sequence[bytes], _: Server) -> object:
    if len(args) != 2:
        return wrong_arguments("client|setinfo")
    what, value = args[0].lower(), args[1]
    if what not in (b"lib-name", b"lib-ver"):
        return RedisError(f"ERR Unrecognized option '{args[0].decode(errors='replace')}'")
    if len(value) > _LONGEST_NAME or not all(33 <= byte <= 126 for byte in value):
        return RedisError(f"ERR {what.decode()} cannot contain spaces, newlines or special characters.")
    if what == b"lib-name":
        client.library = value
    else:
        client.library_version = value
    return OK


def describe(client: Client) -> str:
    """One line about a client, as ``CLIENT INFO`` and ``CLIENT LIST`` show it."""
    multi = len(client.transaction.commands) if client.transaction else -1
    age = int(time.monotonic() - client.since)
    return (
        f"id={client.number} addr={client.address} name={client.name.decode()} age={age} db=0 "
        f"sub={len(client.channels)} multi={multi} user=default lib-name={client.library.decode()} "
        f"lib-ver={client.library_version.decode()} resp={client.protocol}\n"
    )


def _client_list(_: Client, __: Sequence[bytes], server: Server) -> object:
    return "".join(describe(one) for one in server.clients()).encode()


def _notices(client: Client, args: Sequence[bytes], _: Server) -> object:
    if not args or args[0].upper() not in (b"ON", b"OFF"):
        return _syntax()
    client.notices = args[0].upper() == b"ON"
    return OK


def _only(word: bytes) -> Handler:
    def check(_: Client, args: Sequence[bytes], __: Server) -> object:
        if len(args) == 1 and args[0].upper() == word:
            return OK
        return RedisError(f"ERR only {word.decode()} is supported here")

    return check


_CLIENT: Mapping[bytes, Handler] = {
    b"ID": lambda client, _, __: client.number,
    b"GETNAME": lambda client, _, __: client.name or None,
    b"SETNAME": _set_name,
    b"SETINFO": _set_info,
    b"INFO": lambda client, _, __: describe(client).encode(),
    b"LIST": _client_list,
    b"MAINT_NOTIFICATIONS": _notices,
    b"NO-EVICT": lambda _, __, ___: OK,
    b"NO-TOUCH": lambda _, __, ___: OK,
    b"REPLY": _only(b"ON"),
    b"TRACKING": _only(b"OFF"),
}


def _script(_: Client, args: Sequence[bytes], __: Server) -> object:
    what, rest = args[0].upper(), args[1:]
    if what == b"LOAD" and len(rest) == 1:
        return load_script(rest[0])
    if what == b"EXISTS" and rest:
        return [int(known_script(sha1)) for sha1 in rest]
    if what == b"FLUSH":
        return OK
    return RedisError("ERR of SCRIPT, only LOAD, EXISTS and FLUSH are supported here; see docs/redis.md")


def _config(_: Client, args: Sequence[bytes], __: Server) -> object:
    if args[0].upper() == b"GET" and len(args) > 1:
        return {}
    return RedisError("ERR the configuration of this port is the pool spec; see docs/redis.md")


def _command(_: Client, args: Sequence[bytes], __: Server) -> object:
    what = args[0].upper() if args else b""
    known = {name: arity for name, (arity, _) in CONNECTION_COMMANDS.items()} | arities()
    if what == b"COUNT":
        return len(known)
    if what == b"DOCS":
        return {}
    if what not in (b"", b"INFO", b"LIST"):
        return RedisError(f"ERR unknown subcommand '{args[0].decode(errors='replace')}'. Try COMMAND HELP.")
    if what == b"LIST":
        return [name.lower() for name in sorted(known)]
    names = [name.upper() for name in args[1:]] or sorted(known)
    return [[name.lower(), known[name], [], 1, 1, 1] if name in known else None for name in names]


def _info(_: Client, args: Sequence[bytes], server: Server) -> object:
    return info_text(server, VERSION, [section.decode(errors="replace").lower() for section in args]).encode()


def _subscribe(client: Client, args: Sequence[bytes], _: Server) -> object:
    """Acknowledge a subscription: some clients subscribe when they connect. Nothing is ever published here."""
    if len(client.channels) >= CHANNELS_MOST:
        return RedisError(f"ERR a connection has at most {CHANNELS_MOST} subscriptions here")
    client.channels.update(args[:1])
    return [b"subscribe", args[0], len(client.channels)]


def _unsubscribe(client: Client, args: Sequence[bytes], _: Server) -> object:
    client.channels.difference_update(args or tuple(client.channels))
    return [b"unsubscribe", args[0] if args else None, len(client.channels)]


def _refusal(why: str) -> Handler:
    return lambda _, __, ___: RedisError(f"ERR {why}; see docs/redis.md")


BEFORE_AUTH = frozenset({b"AUTH", b"HELLO", b"QUIT", b"RESET"})
"""The commands of clients that have not shown their password."""

CONNECTION_COMMANDS: Mapping[bytes, tuple[int, Handler]] = {
    b"HELLO": (-1, _hello),
    b"AUTH": (-2, _auth),
    b"PING": (-1, _ping),
    b"ECHO": (2, _echo),
    b"SELECT": (2, _select),
    b"QUIT": (-1, _quit),
    b"RESET": (1, _reset),
    b"CLIENT": (-2, _client),
    b"CONFIG": (-2, _config),
    b"COMMAND": (-1, _command),
    b"INFO": (-1, _info),
    b"SCRIPT": (-2, _script),
    b"READONLY": (1, lambda _, __, ___: _NO_CLUSTER),
    b"READWRITE": (1, lambda _, __, ___: _NO_CLUSTER),
    b"CLUSTER": (-2, lambda _, __, ___: _NO_CLUSTER),
    b"SUBSCRIBE": (2, _subscribe),
    b"UNSUBSCRIBE": (-1, _unsubscribe),
    b"UNWATCH": (1, lambda _, __, ___: OK),
    b"TIME": (1, lambda _, __, server: [b"%d" % part for part in divmod(server.now_us(), 1_000_000)]),
    b"WATCH": (-2, _refusal("'watch' is not supported: write the condition into the command (NX, XX, a lock script)")),
    b"FLUSHDB": (
        -1,
        _refusal("'flushdb' is refused: other applications may share the pool"),
    ),
    b"FLUSHALL": (-1, _refusal("'flushall' is refused: other applications may share the pool")),
    b"KEYS": (2, _refusal("'keys' is refused: it would stop the sidecar; use SCAN")),
    b"MONITOR": (1, _refusal("'monitor' is refused: it would show all sessions")),
    b"DEBUG": (-2, _refusal("'debug' is refused")),
}
"""The arity of each command, as Redis counts it (with the name; negative: at least), and its function."""
