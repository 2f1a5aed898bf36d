"""The examples under deploy/examples/frameworks: how each is started, and why it cannot be where it cannot."""

import contextlib
import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.harness.places import ROOT
from tests.harness.programs import Program
from tests.harness.waiting import free_port, until

EXAMPLES = ROOT / "deploy/examples/frameworks"
NPM_TIMEOUT = 120.0


@dataclass(frozen=True)
class Example:
    """An example application: the name of its session cookie, what it needs, and its environment besides the usual.

    ``keeps_elsewhere``: it has a database too, and hides that the session store has refused a write.
    """

    name: str
    cookie: str
    module: str = ""
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    keeps_elsewhere: bool = False

    def command(self) -> list[str]:
        """How it is started; skips the test where a program or a package is missing."""
        if self.module == "php":
            return [program("php"), "-S", "{address}", str(EXAMPLES / "php/app.php")]
        if self.module == "express":
            return [program("node"), str(installed_express() / "app.mjs")]
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed: pip install 'understudy[frameworks]'")
        return [sys.executable, "-m", f"understudy.deploy.examples.frameworks.{self.module}"]


DJANGO_REDIS = {"CACHE_BACKEND": "django_redis.cache.RedisCache"}
CACHED_DB = {"SESSION_ENGINE": "django.contrib.sessions.backends.cached_db"}
FLASK = Example("flask", "session", "flask_app", ("flask_session",))
DJANGO = Example("django", "sessionid", "django_app", ("django",))
EXPRESS = Example("express", "connect.sid", "express")
OTHER_STORES = (
    Example("django with cached_db", "sessionid", "django_app", ("django",), CACHED_DB, keeps_elsewhere=True),
    Example("django-redis", "sessionid", "django_app", ("django_redis",), DJANGO_REDIS),
    Example("express with ioredis", "connect.sid", "express", (), {"REDIS_CLIENT": "ioredis"}),
    Example("php with locks", "PHPSESSID", "php", (), {"SESSION_LOCKING": "1"}),
)
"""Frameworks of which there is another example, with another store or another client."""
EXAMPLES_OF_ALL = (
    FLASK,
    DJANGO,
    Example("starlette", "session", "starlette_app", ("starsessions", "uvicorn")),
    EXPRESS,
    Example("php", "PHPSESSID", "php"),
    *OTHER_STORES,
)


def program(name: str) -> str:
    """The path of a program; skips the test where it is missing, or is PHP without php-redis."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: .ci/programs installs it")
    if name == "php" and b"redis" not in subprocess.run([found, "-m"], capture_output=True, check=True).stdout:
        pytest.skip("php-redis is not installed: .ci/programs installs it")
    return found


def installed_express() -> Path:
    """A folder with the Express example and its packages, made once for one lock file."""
    source = EXAMPLES / "express"
    mark = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()[:12]
    folder = ROOT / "build" / f"express-{mark}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in ("package.json", "package-lock.json", "app.mjs"):
            shutil.copyfile(source / file, folder / file)
        done = folder / ".installed"
        if not done.exists():
            _npm_ci(folder)
            done.touch()
    return folder


def _npm_ci(folder: Path) -> None:
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error")
    try:
        ended = subprocess.run(
            [program("npm"), "ci", *options],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm ci took too long")
    if ended.returncode:
        pytest.skip(f"npm ci cannot install the example's packages: {ended.stderr.strip()[-300:]}")


@asynccontextmanager
async def running(example: Example, directory: Path, **environment: str) -> AsyncIterator[str]:
    """The URL of a running example with this environment; its log is in ``directory``."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    program = Program(
        example.name,
        [part.replace("{address}", address) for part in example.command()],
        directory / "app.log",
        {"HOST": "127.0.0.1", "PORT": str(port), "DATABASE": str(directory / "sqlite"), **example.environment},
    )
    program.start(**environment)
    try:
        async with aiohttp.ClientSession() as http:

            async def ready() -> bool:
                assert program.runs, (directory / "app.log").read_text()
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"http://{address}/healthz") as answer:
                        return answer.status == 200
                return False

            await until(ready, 90, f"{example.name} answers")
        yield f"http://{address}"
    finally:
        program.kill()
