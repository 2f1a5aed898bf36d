"""The fork server's process; see ``forkserver.py``. It has one thread, no event loop, and nothing of gRPC but its code.

What it returns from :func:`serve` in a child is what that child is to be, so that the child runs at the bottom of the
stack and ends like a process that was started by itself.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from tests.harness import forkserver
from understudy.deploy.local import processes

_PACKAGES = ("deploy", "proxy", "statesync", "telemetry", "xds")
_LOADED = (
    "encodings.idna",
    "envoy",
    "grpc.experimental",
    "http.server",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "pydantic.type_adapter",
    "rich.live",
)
# Programs of the tests: what they import stays.
_PROGRAMS = (
    "tests.deploy.counting_app",
    "tests.deploy.slow_app",
    "tests.faults.lists_app",
    "tests.proxy.front.front_process",
    "tests.xds.control.control_process",
    "tests.xds.control.simulated_member",
    "tests.xds.envoy.echo_member",
)

_NOT_LOADED = "understudy.deploy.examples.frameworks"
"""Its programs import web frameworks, and Django can be configured only once."""

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def serve(link: socket.socket, parent: int) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a child of ``parent`` for each request. Returns its request in a child, None at the end of all."""
    while True:
        message, files, _, _ = socket.recv_fds(link, 1 << 18, 3)
        if not message:
            return None
        request = json.loads(message)
        child = _fork(parent, session=request["session"])
        if not child:
            return request, files
        for file in files:
            os.close(file)
        link.send(str(child).encode())


def _fork(parent: int, *, session: bool) -> int:
    """The new process's id; 0 in the new process. By then it is a child of ``parent``, perhaps in a new session."""
    told, tell = os.pipe()
    between = os.fork()
    if not between:
        child = os.fork()
        if child:
            os.write(tell, str(child).encode())
            os._exit(0)
        os.close(told)
        _tie_to(parent)
        if session:
            os.setsid()
        os.close(tell)
        return 0
    os.close(tell)
    os.waitpid(between, 0)
    with os.fdopen(told, "rb") as pipe:
        return int(pipe.read())  # the child has its end of it until it is as it should be


def _tie_to(parent: int) -> None:
    """Wait until this process is ``parent``'s child, and have it end with it."""
    while os.getppid() != parent:
        if os.getppid() == 1:
            os._exit(1)  # the test process is gone
        time.sleep(0.0005)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def served(link: socket.socket, parent: int) -> tuple[dict[str, Any], list[int]] | None:
    """The same for a link that is closed then; a child that is to fork processes of its own has a server for them."""
    with link:
        job = None
        with contextlib.suppress(ConnectionError):
            job = serve(link, parent)
    if job is None or not job[0]["forks"]:
        return job
    ours, theirs = forkserver.pair()
    program = os.getpid()
    if os.fork():
        theirs.close()
        forkserver.use(ours)
        processes.tethered = forkserver.forked_program
        return job
    ours.close()
    for file in job[1]:
        os.close(file)
    _tie_to(program)
    return served(theirs, program)


def become(request: dict[str, Any], files: list[int]) -> None:
    """Do in this process what ``python COMMAND`` does in a process of its own."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if request["namespace"]:
        _enter(request["namespace"])
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _libc.prctl(_PR_SET_NAME, _name(request["command"]).encode())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    option, program, *arguments = request["command"]
    if option == "-m":
        sys.path[:1] = [] if request["safe"] else [request["directory"]]
        sys.argv = [program, *arguments]
        if not hasattr(sys.modules.get(program), "__path__"):
            sys.modules.pop(program, None)  # it is run anew, as __main__
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[:1] = [] if request["safe"] else [""]
        sys.argv = [option, *arguments]
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(program, "<string>", "exec"), main.__dict__)


def _name(command: list[str]) -> str:
    """What ps and top call this process: the command of ``understudy`` or the module; code has no name."""
    option, program, *arguments = command
    if option == "-c":
        return "python -c"
    if program != "understudy.deploy.cli":
        return program.rpartition(".")[2]
    return next(iter(arguments[2:] if arguments[:1] == ["--log-level"] else arguments), "understudy")


def end(code: int) -> NoReturn:
    """End this process as Python would, but leave its memory alone: to take apart all modules copies each page of them.

    That is 50 ms of CPU for each process, and nothing that another process could see.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # it waits for the other threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


def _enter(namespace: str) -> None:
    descriptor = os.open(namespace, os.O_RDONLY)
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


def load() -> None:
    """Import what children need: all our modules, and the programs of tests."""
    for package in _PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(("understudy", *path.relative_to(ROOT).with_suffix("").parts))
            if path.stem != "__main__" and not name.startswith(_NOT_LOADED):
                importlib.import_module(name.removesuffix(".__init__"))
    for name in (*_LOADED, *_PROGRAMS):
        importlib.import_module(name)
    _warm_up()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads do not survive a fork"
    gc.collect()
    gc.freeze()


def _warm_up() -> None:
    """Encode resources of each kind: the first message of a type takes many times as long as those after it."""
    resources, views = (
        importlib.import_module(f"understudy.xds.envoy.{name}") for name in ("resources", "routing_view")
    )
    spec = importlib.import_module("understudy.statesync.pool.spec").PoolSpec
    members = {"a": views.Endpoint("127.0.0.1", 1), "b": views.Endpoint("127.0.0.1", 1, check=("127.0.0.1", 2))}
    for protocol in ("http1", "tcp"):
        resources.build(views.RoutingView(spec(pool="warm", slots=2, protocol=protocol), members, [("a", "b")] * 2))
    listeners = importlib.import_module("understudy.xds.envoy.listener")
    listeners.listener("warm", "127.0.0.1", 1, "telemetry", traced=True)


def main() -> None:
    """Load, serve, and in a child become what was asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = socket.socket(fileno=int(sys.argv[1]))
    load()
    link.send(b"ready")
    job = served(link, int(sys.argv[2]))
    if job is None:
        end(0)
    code = 0
    try:
        become(*job)
    except SystemExit as asked:
        if not isinstance(asked.code, int | None):
            raise  # Python prints it
        code = asked.code or 0
    end(code)


if __name__ == "__main__":
    main()
