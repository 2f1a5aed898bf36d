"""The health port: front Envoys ask here, many times a second, whether this member serves.

A thread of its own answers, so that a busy event loop (a large copy, a burst of writes) does not look like a frozen
process: a stopped process answers nothing, a busy one does. It answers 200 while the member serves, and 503 with the
reason when it does not. It says no more, so it is plain HTTP, open to everybody who reaches the application.
``understudy.proxy.sidecar.member_state`` decides whether the member serves. This module adds that a member whose event
loop stands still does not serve, unless etcd has no leader: then nobody else could (``loop_lag``).

Probes and hooks of an orchestrator ask here too: ``/live`` (may the process go on), and what ``more`` names. Any
request may have ``?wait=SECONDS``: then it is answered as soon as the answer is yes.
"""

import contextlib
import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs

from understudy.proxy.health.loop_lag import LoopLag, bearable

logger = logging.getLogger(__name__)

HEALTH, LIVE = "/health", "/live"
HOPELESS_AFTER = 30.0
"""Seconds of a standstill of the event loop after which only a new process helps."""
MAX_WAIT = 600.0
POLL_INTERVAL = 0.05
BACKLOG = 256
MOST_CONNECTIONS = 1024
HEAD_MOST = 8192
EVERYWHERE = "*"
"""Every address of this machine, of whatever family."""
WILDCARDS = ("0.0.0.0", "[::]", EVERYWHERE)  # noqa: S104 - recognised, not listened at by itself
_END = b"\r\n\r\n"


Question = Callable[[], str]
"""'' for yes, else why not. Quick, and safe in any thread."""


class Patient:
    """A question that is not worth waiting for unless something has ``begun`` within ``patience`` seconds."""

    def __init__(self, question: Question, begun: Callable[[], bool], patience: float) -> None:
        self._question = question
        self._begun = begun
        self._patience = patience

    def __call__(self) -> str:
        """The answer as it is now."""
        return self._question()

    def pointless(self, waited: float) -> bool:
        """Whether an asker who has waited for so long may as well hear no."""
        return waited > self._patience and not self._begun()


@dataclass(slots=True)
class _Connection:
    """A connection: what came that is no whole request yet, and the request that waits for its answer, if one does."""

    socket: socket.socket
    came: bytes = b""
    waiting: bytes = b""
    since: float = 0.0


class HealthPort:
    """Answers health checks at ``address`` until closed.

    ``fault`` tells why the member does not serve; ``more`` are further questions, by path; ``no_leader_at`` tells when
    etcd was last seen to lack a leader (monotonic). Raises ``OSError`` if the address cannot be listened on.
    """

    def __init__(
        self,
        address: tuple[str, int],
        fault: Question,
        loop_lag: LoopLag,
        more: Mapping[str, Question] | None = None,
        no_leader_at: Callable[[], float] = lambda: float("-inf"),
    ) -> None:
        self._listener = _listen(*address)
        self._listener.setblocking(False)
        self._loop_lag = loop_lag
        self._questions: Mapping[str, Question] = {
            HEALTH: lambda: self._stalled(bearable(time.monotonic(), no_leader_at())) or fault(),
            LIVE: lambda: self._stalled(HOPELESS_AFTER),
            **(more or {}),
        }
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="health port", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as ready, self._listener:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(self._woken, selectors.EVENT_READ)
            open_now: dict[socket.socket, _Connection] = {}
            while True:
                patient = [each for each in open_now.values() if each.waiting]
                for key, _ in ready.select(POLL_INTERVAL if patient else None):
                    if key.fileobj is self._woken:
                        for each in open_now:
                            each.close()
                        return
                    if key.fileobj is self._listener:
                        self._accept(ready, open_now)
                    elif not self._hear(key.data):
                        self._drop(ready, open_now, key.data)
                for connection in patient:
                    if connection.socket in open_now and not self._speak(connection):
                        self._drop(ready, open_now, connection)

    def _accept(self, ready: selectors.BaseSelector, open_now: dict[socket.socket, _Connection]) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = self._listener.accept()
            if len(open_now) >= MOST_CONNECTIONS:
                accepted.close()
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            open_now[accepted] = _Connection(accepted)
            ready.register(accepted, selectors.EVENT_READ, open_now[accepted])

    @staticmethod
    def _drop(
        ready: selectors.BaseSelector, open_now: dict[socket.socket, _Connection], connection: _Connection
    ) -> None:
        ready.unregister(connection.socket)
        del open_now[connection.socket]
        connection.socket.close()

    def _hear(self, connection: _Connection) -> bool:
        """Take in what has come and answer what can be; False when the connection is of no more use."""
        try:
            came = connection.socket.recv(HEAD_MOST)
        except BlockingIOError:
            return True
        except OSError:
            return False
        connection.came += came
        return bool(came) and self._speak(connection) and len(connection.came) < HEAD_MOST

    def _speak(self, connection: _Connection) -> bool:
        """Answer, in order, every whole request that need not wait; False if the connection is of no more use."""
        while connection.waiting or _END in connection.came:
            if not connection.waiting:
                connection.waiting, _, connection.came = connection.came.partition(_END)
                connection.since = time.monotonic()
            answer = self._answer(connection.waiting, waited=time.monotonic() - connection.since)
            if not answer:
                return True
            connection.waiting = b""
            try:
                # An answer is far smaller than a socket's buffer; a peer that reads none of them loses its connection.
                if connection.socket.send(answer) <= 0:
                    return False
            except OSError:
                return False
        return True

    def _answer(self, head: bytes, *, waited: float) -> bytes:
        """The answer to a request ``waited`` seconds old; none while it is no and the asker would rather wait."""
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        question = self._questions.get(path)
        if method not in (b"GET", b"HEAD") or question is None:
            known = ", ".join(sorted(self._questions))
            return _response("404 Not Found", {"detail": f"here GET answers {known}"}, body=method != b"HEAD")
        fault = question()
        pointless = isinstance(question, Patient) and question.pointless(waited)
        if fault and waited < _wait_of(head) and not pointless:
            return b""
        status = "503 Service Unavailable" if fault else "200 OK"
        said = "serving" if path == HEALTH else "yes"
        return _response(status, {said: not fault, "reason": fault}, body=method == b"GET")

    def _stalled(self, bearable: float) -> str:
        late = self._loop_lag.now
        return f"the event loop stands still for {late:.1f} s" if late > bearable else ""


def _listen(host: str, port: int) -> socket.socket:
    if host != EVERYWHERE:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # a machine may know IPv6 and have none; a port that is taken shows below
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=BACKLOG)


def _wait_of(head: bytes) -> float:
    """How long a request's asker would wait for a yes, in seconds; nonsense is no wish."""
    target = head.partition(b" ")[2].partition(b" ")[0].decode("latin-1")
    said = parse_qs(target.partition("?")[2]).get("wait", ["0"])[0]
    try:
        wait = float(said)
    except ValueError:
        return 0.0
    return wait if 0 <= wait <= MAX_WAIT else 0.0


def _response(status: str, content: dict[str, object], *, body: bool) -> bytes:
    text = json.dumps(content).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    return head.encode() + (text if body else b"")


def open_health_port(
    stack: contextlib.AsyncExitStack,
    address: str,
    app: str,
    fault: Question,
    loop_lag: LoopLag,
    more: Mapping[str, Question] | None = None,
    no_leader_at: Callable[[], float] = lambda: float("-inf"),
) -> str:
    """Open a health port that is closed with ``stack``, and return where it is.

    ``address`` is ``host:port``; without one it gets a free port of the host of ``app``. A port of all addresses is
    told as one of the application's host. Raises ``OSError`` or ``ValueError`` if it cannot be opened.
    """
    beside = app.rpartition(":")[0]
    host, _, port = (address or f"{beside}:0").rpartition(":")
    opened = stack.enter_context(HealthPort((host.strip("[]"), int(port)), fault, loop_lag, more, no_leader_at))
    return f"{beside if host in WILDCARDS else host}:{opened.address[1]}"
