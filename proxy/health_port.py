"""The health port: what front Envoys ask, many times a second, to learn whether this member serves.

A thread of its own answers, so that a busy event loop (a large copy, a burst of writes) does not look like a frozen
process: a stopped process answers nothing, a busy one does. It says 200 while the member serves and 503 with the
reason when it does not, and no more; so it is plain HTTP, open to whoever reaches the application. Whether the member
serves is decided elsewhere (``proxy.sidecar``); this adds only that a stalled event loop has decided nothing lately.
"""

import contextlib
import json
import logging
import selectors
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from proxy.stall import STALLED_AFTER, StallWatch

logger = logging.getLogger(__name__)

PATH = b"/health"
MOST_CONNECTIONS = 1024
HEAD_MOST = 8192
WILDCARDS = ("0.0.0.0", "[::]")  # noqa: S104 - recognised, not listened at by itself
_END = b"\r\n\r\n"


class HealthPort:
    """Answers health checks at ``address`` until closed.

    ``fault`` tells why the member does not serve ('' if it does) and must be quick and safe in any thread. Raises
    ``OSError`` if the address cannot be listened on.
    """

    def __init__(self, address: tuple[str, int], fault: Callable[[], str], stall: StallWatch) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=256)
        self._listener.setblocking(False)
        self._fault = fault
        self._stall = stall
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

    def _serve(self) -> None:
        with selectors.DefaultSelector() as ready, self._listener, self._woken:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(self._woken, selectors.EVENT_READ)
            heads: dict[socket.socket, bytes] = {}
            while True:
                for key, _ in ready.select():
                    if key.fileobj is self._woken:
                        for each in heads:
                            each.close()
                        return
                    if key.fileobj is self._listener:
                        self._accept(ready, heads)
                        continue
                    connection: socket.socket = key.data
                    if not self._hear(connection, heads):
                        ready.unregister(connection)
                        del heads[connection]
                        connection.close()

    def _accept(self, ready: selectors.BaseSelector, heads: dict[socket.socket, bytes]) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if len(heads) >= MOST_CONNECTIONS:
                connection.close()
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            heads[connection] = b""
            ready.register(connection, selectors.EVENT_READ, connection)

    def _hear(self, connection: socket.socket, heads: dict[socket.socket, bytes]) -> bool:
        """Take in what has come and answer every whole request in it; False when the connection is of no more use."""
        try:
            came = connection.recv(HEAD_MOST)
            heads[connection] += came
            while _END in heads[connection]:
                head, _, heads[connection] = heads[connection].partition(_END)
                # An answer is far smaller than a socket's buffer; a peer that reads none of them loses its connection.
                if connection.send(self._answer(head)) <= 0:
                    return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        return bool(came) and len(heads[connection]) < HEAD_MOST

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD") or path != PATH:
            return _response("404 Not Found", {"detail": "only GET /health is answered here"}, body=method != b"HEAD")
        late = self._stall.now
        fault = f"the event loop stands still for {late:.1f} s" if late > STALLED_AFTER else self._fault()
        status = "503 Service Unavailable" if fault else "200 OK"
        return _response(status, {"serving": not fault, "reason": fault}, body=method == b"GET")


def _response(status: str, content: dict[str, object], *, body: bool) -> bytes:
    text = json.dumps(content).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    return head.encode() + (text if body else b"")


def open_health_port(
    stack: contextlib.AsyncExitStack, address: str, app: str, fault: Callable[[], str], stall: StallWatch
) -> str:
    """Open a health port that is closed with ``stack``, and return where it is.

    ``address`` is ``host:port``; without one it gets a free port of the host of ``app``. A port of all addresses is
    told as one of the application's host. Raises ``OSError`` or ``ValueError`` if it cannot be opened.
    """
    beside = app.rpartition(":")[0]
    host, _, port = (address or f"{beside}:0").rpartition(":")
    opened = stack.enter_context(HealthPort((host.strip("[]"), int(port)), fault, stall))
    return f"{beside if host in WILDCARDS else host}:{opened.address[1]}"
