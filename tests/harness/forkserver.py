"""Starting our own programs without their imports: each test process has a server that forks what it has loaded.

``python -m understudy.deploy.cli control`` takes one to two seconds of CPU to import what it needs, and the tests start
hundreds of such processes. :func:`forked` marks a command for the fork server; ``subprocess.Popen`` and
``asyncio.create_subprocess_exec`` take such a command like any other, and what they return is an ordinary child: it
has a process id of its own, its own arguments, environment, directory and files, can be killed and waited for, and
ends with the test process. A command that a fork cannot stand for is started in the usual way.
"""

import contextlib
import ctypes
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness.processes import bound_to

ROOT = Path(__file__).parents[2]

_MARK, _FORKS = "fork-server:", "fork-server-with-its-own:"
_LONGEST_REQUEST = 1 << 17
_PATIENCE = 600.0
"""Seconds for the server to load, which takes 4 s of CPU, and for an answer. Its end is noticed at once."""
_PR_SET_CHILD_SUBREAPER = 36
# Besides what Python reads as it starts: what is linked at the start of a process.
_AT_START = ("PYTHON", "LD_", "FAKETIME")
_NETNS = Path("/run/netns")


def forked(command: Sequence[str], *, forks: bool = False) -> list[str]:
    """A command that the fork server starts, if it can; to be given to ``Popen`` by the test process itself.

    With ``forks`` the process has a fork server too, for the programs of a local pool that it starts.

    Where nobody called :func:`start`, as in benchmarks, it is started in the usual way: a fork shares its pages, and a
    process that runs for long pays for each one that it has to copy.
    """
    return [_FORKS if forks else _MARK, *command] if _server is not None else bound_to(os.getpid(), command)


def forked_program(program: Path, *arguments: str) -> list[str]:
    """The same in the words of ``understudy.proxy.front.pdeathsig``, for the programs of a local pool."""
    return forked([str(program), *arguments])


def start() -> None:
    """Have the server load what it needs, if it does not run yet; returns at once."""
    global _server  # noqa: PLW0603 - one for the process, as its children are
    with _lock:
        if _server is None:
            _server = _launched()


def ready() -> None:
    """Return once the server, if it was started, has loaded what it needs."""
    with _lock:
        if _server is not None:
            _server.await_ready()


def use(link: socket.socket) -> None:
    """Have the server at the other end of ``link`` fork this process's children: it has loaded what it needs."""
    global _server  # noqa: PLW0603
    _server = _Server(link, loaded=True)


def _launched() -> "_Server":
    """A new server that begins to load."""
    link, theirs = pair()
    command = [sys.executable, "-m", "tests.harness.forkserver_process", str(theirs.fileno()), str(os.getpid())]
    with theirs:
        server = _Server(link)
        server.process = subprocess.Popen(
            bound_to(os.getpid(), command), pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL
        )
    return server


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a link between a server and its only user."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class _Server:
    """The server's process, as its only user sees it."""

    def __init__(self, link: socket.socket, *, loaded: bool = False) -> None:
        self._link = link
        self._link.settimeout(_PATIENCE)
        self._ready = loaded
        self.process: subprocess.Popen[bytes] | None = None

    def await_ready(self) -> None:
        if not self._ready:
            assert self._link.recv(16) == b"ready", "the fork server could not load what it needs"
            self._ready = True

    def fork(self, request: Mapping[str, Any], files: Sequence[int]) -> int:
        """The process id of a new child of this process that does what is requested."""
        message = json.dumps(request).encode()
        assert len(message) < _LONGEST_REQUEST
        self.await_ready()
        with _adopting():
            socket.send_fds(self._link, [message], list(files))
            answer = self._link.recv(16)
        assert answer, "the fork server is gone"
        return int(answer)


_server: _Server | None = None
_lock = threading.Lock()


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Processes below this one whose parent ends become its children.

    The server forks twice and the one in between ends: so the child becomes ours. At other times orphans go where they
    always went, since nobody here would wait for them.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _fitting(command: Sequence[str], env: Mapping[str, str] | None) -> dict[str, Any] | None:
    """What to ask of the server for this command, None if a fork cannot stand for it."""
    namespace = ""
    if [Path(command[0]).name, *command[1:3]] == ["ip", "netns", "exec"]:
        namespace, command = str(_NETNS / command[3]), command[4:]
    environment = {**(os.environ if env is None else env)}
    if command[0] == "/usr/bin/env":
        variables = list(itertools.takewhile(lambda word: "=" in word, command[1:]))
        environment.update(variable.split("=", 1) for variable in variables)
        command = command[1 + len(variables) :]
    # Every process of the tests finds our packages, with that path or without.
    path = environment.get("PYTHONPATH", str(ROOT))
    if path != str(ROOT) or _at_start(environment) != _at_start(os.environ):
        return None
    safe = list(command[:2]) == [sys.executable, "-P"]
    if safe:
        command = [command[0], *command[2:]]
    if command[0] != sys.executable or command[1] not in {"-m", "-c"}:
        return None
    return {"command": list(command[1:]), "safe": safe, "environment": environment, "namespace": namespace}


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """What in an environment a process sees only as it starts."""
    names = [name for name in environment if name.startswith(_AT_START) and name != "PYTHONPATH"]
    return {name: environment[name] for name in names}


class _Popen(subprocess.Popen):
    """``subprocess.Popen`` that knows marked commands."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        if not isinstance(args, list | tuple) or args[0] not in {_MARK, _FORKS}:
            super()._execute_child(args, *rest)
            return
        command = list(map(os.fspath, args[1:]))
        _, preexec, _, passed, directory, env, _, _, shell, *ends = rest
        stdin, _, _, stdout, _, stderr = ends[:6]
        request = _fitting(command, env)
        if request is None or preexec or passed or shell:
            super()._execute_child(bound_to(os.getpid(), command), None, *rest[1:])
            return
        request |= {"directory": os.fspath(directory or Path.cwd()), "session": bool(ends[-2])}
        request["forks"] = args[0] == _FORKS
        start()
        with _lock:
            assert _server is not None
            files = [own if own >= 0 else ours for ours, own in enumerate((stdin, stdout, stderr))]
            self.pid = _server.fork(request, files)
        self._child_created = True
        self._close_pipe_fds(*ends[:6])


subprocess.Popen = _Popen  # asyncio looks it up there too
