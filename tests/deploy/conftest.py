"""What the tests of commands share."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from understudy.deploy.cli.main import cli


@pytest.fixture
def understudy(tmp_path, monkeypatch):
    """Run a command in an empty directory; the result has ``exit_code``, ``output`` and ``stderr``."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNDERSTUDY_ETCD", "UNDERSTUDY_POOL", "UNDERSTUDY_DIR"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner(env={"COLUMNS": "200"})
    with ThreadPoolExecutor(1) as thread:  # commands run an event loop of their own, which a test's thread has already

        def run(*arguments):
            return thread.submit(runner.invoke, cli, [str(argument) for argument in arguments]).result()

        yield run
