"""Every rendered command line is one that the commands take, and the page about them says what is so."""

import re

import pytest

from deploy.cli import COMMANDS, cli
from deploy.kubernetes.flows import APP_PORT, FLOWS
from deploy.kubernetes.inventory import workloads
from deploy.kubernetes.kustomize import tree
from deploy.kubernetes.plan import Etcd, Plan, choose_images
from statesync.spec import PoolSpec
from tests.harness.commands import ROOT

PAGE = (ROOT / "docs/kubernetes.md").read_text()


def parsed(arguments):
    """Let the command's own parser read arguments; nothing is run."""
    filled = [
        re.sub(r"\$\(\w+\)", "name", one).replace("/etc/understudy/pool.yaml", str(ROOT / "README.md"))
        for one in arguments
    ]
    context = cli.make_context("understudy", list(filled))
    name, command, rest = cli.resolve_command(context, filled)
    command.make_context(name, rest, parent=context)
    return name


def test_every_container_of_ours_is_started_with_options_that_there_are(objects):
    ours = {
        each["name"]: parsed(each["args"])
        for one in workloads(objects)
        for each in one.containers
        if "understudy-" in each["image"] and "command" not in each
    }

    assert ours == {"control": "control", "apply": "apply", "injector": "injector"}


def test_the_page_lists_the_connections_that_the_policies_allow():
    rows = re.findall(r"^\| (\S[^|]*?) \| (\w+) \| ([\w' ]+?) \| ([^|]+?) \|$", PAGE, re.MULTILINE)
    told = {(row[0], row[1], row[2], row[3]) for row in rows if row[2].isdigit() or row[2] == "the application's"}

    wanted = {
        (flow.source, flow.target, "the application's" if flow.port == APP_PORT else str(flow.port), flow.why)
        for flow in FLOWS
    }
    assert told == wanted


def test_the_page_tells_of_every_folder_that_is_written():
    plan = Plan(PoolSpec(pool="cart"), choose_images("registry.example", "1"), etcd=Etcd(("http://etcd:2379",)))
    told = set(re.findall(r"^\| `((?:base|components|overlays)[\w/-]*?)/?` \|", PAGE, re.MULTILINE))

    assert told == set(tree(plan))


@pytest.mark.parametrize("line", re.findall(r"^(understudy [^#\n]*(?:\\\n[^#\n]*)*)", PAGE, re.MULTILINE))
def test_the_pages_commands_are_ones_that_there_are(line):
    words = line.replace("\\\n", " ").split()[1:]
    group = cli.get_command(None, words[0])
    command = group.get_command(None, words[1]) if words[0] == "render" else group
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}

    assert words[0] in COMMANDS
    assert {word for word in words if word.startswith("-")} <= known
