"""Shell completion: what it offers, and that it is quiet when it can offer nothing."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from tests.harness.places import ROOT
from tests.harness.waiting import until
from understudy.deploy.cli.commands_completion import VARIABLE
from understudy.deploy.cli.main import COMMANDS, cli
from understudy.deploy.common import completion
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.records import Intent, Member, MemberState
from understudy.statesync.pool.spec import PoolSpec


def offered(*arguments):
    """What is offered for the last of ``arguments``."""
    shell = ShellComplete(cli, {}, "understudy", VARIABLE)
    return [item.value for item in shell.get_completions(list(arguments[:-1]), arguments[-1])]


def in_a_process(*words, **environment):
    """A completion as bash asks for it."""
    return subprocess.run(
        [sys.executable, "-m", "understudy.deploy.cli"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            VARIABLE: "bash_complete",
            "COMP_WORDS": " ".join(("understudy", *words)),
            "COMP_CWORD": str(len(words)),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def patient(monkeypatch):
    """A busy machine may answer later than within a second."""
    monkeypatch.setattr(completion, "WAIT_MOST", 60)
    monkeypatch.setattr(completion, "ANSWER_MOST", 50)


@pytest.fixture
async def pool(client, pool_name, etcd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_ETCD", etcd.endpoint)
    keys = PoolKeys(pool_name)
    await client.put(keys.spec, PoolSpec(pool=pool_name).encode())
    for name, site in (("cart-1", "east"), ("cart-2", "west"), ("desk-1", "")):
        await client.put(keys.member(name), Member(name, "b", "h:1", "h:2", MemberState.UP, site=site).encode())
    await client.put(keys.site_intent("north"), Intent("", 0.0).encode())
    return pool_name


def test_commands_are_offered_without_loading_any_of_them():
    assert set(offered("")) >= COMMANDS.keys()
    assert offered("undr") == ["undrain"]


async def test_names_come_from_etcd(pool, patient, etcd, monkeypatch):
    assert pool in offered("status", "--pool", pool[:4])
    assert offered("drain", "--pool", pool, "c") == ["cart-1", "cart-2"]
    assert offered("undrain", "--pool", pool, "") == ["cart-1", "cart-2", "desk-1"]
    assert offered("drill", "kill", "--pool", pool, "--member", "d") == ["desk-1"]
    assert offered("site", "offline", "--pool", pool, "") == ["east", "north", "west"]
    assert offered("pools", "delete", pool) == [pool]
    monkeypatch.delenv("UNDERSTUDY_ETCD")
    assert offered("drain", "--etcd", etcd.endpoint, "--pool", pool, "cart-1") == ["cart-1"]


def test_the_kinds_of_drills_are_offered():
    assert "rolling" in offered("drill", "")


async def test_bash_gets_the_names(pool):
    def told():
        done = in_a_process("drain", "--pool", pool, "cart-")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split() == ["plain,cart-1", "plain,cart-2"]

    await until(told, 60, "etcd answers within a second")


@pytest.mark.parametrize("kind", ["refuses", "is silent", "is no address"])
def test_an_etcd_that_does_not_answer_is_no_trouble(kind, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "is silent":
            listener.listen()
        address = "no such thing" if kind == "is no address" else f"127.0.0.1:{listener.getsockname()[1]}"
        done = in_a_process("drain", "--pool", "cart", "c", UNDERSTUDY_ETCD=address, UNDERSTUDY_DIR=str(tmp_path))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(understudy, shell):
    printed = understudy("completion", shell)
    assert printed.exit_code == 0
    assert f"{VARIABLE}={shell}_complete" in printed.stdout
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=printed.stdout, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
