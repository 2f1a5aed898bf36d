"""Every rendered command line is one that the commands take, and the page about them says what is so."""

import re
import shlex

import click
import pytest

from tests.harness.places import ROOT
from understudy.deploy.cli.main import COMMANDS, cli
from understudy.deploy.kubernetes.preflight.lint_flows import APP_PORT, FLOWS
from understudy.deploy.kubernetes.preflight.manifest_index import workloads
from understudy.deploy.kubernetes.render.kustomize import tree
from understudy.deploy.kubernetes.render.plan import Autoscale, Etcd, Plan, Pool, choose_images, parse_mirror
from understudy.statesync.pool.spec import PoolSpec

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

    assert ours == {"control": "control", "apply": "apply", "injector": "injector", "mirror": "mirror"}


def test_the_page_lists_the_connections_that_the_policies_allow():
    rows = re.findall(r"^\| (\S[^|]*?) \| (\w+) \| ([\w' ]+?) \| ([^|]+?) \|$", PAGE, re.MULTILINE)
    told = {(row[0], row[1], row[2], row[3]) for row in rows if row[2].isdigit() or row[2] == "the application's"}

    wanted = {
        (flow.source, flow.target, "the application's" if flow.port == APP_PORT else str(flow.port), flow.why)
        for flow in FLOWS
    }
    assert told == wanted


def test_the_page_tells_of_every_folder_that_is_written():
    plan = Plan(
        (Pool(PoolSpec(pool="cart")),),
        choose_images("registry.example", "1"),
        etcd=Etcd(("http://etcd:2379",)),
        autoscale=Autoscale("hpa"),
        mirror=parse_mirror("east", "west=etcd.west.example:2379"),
    )
    told = set(re.findall(r"^\| `((?:base|components|overlays)[\w/-]*?)/?` \|", PAGE, re.MULTILINE))

    assert told == set(tree(plan))


def commands_of(page):
    """The lines of a page's code blocks that are commands of ours; ``us`` runs them in the operator's pod."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    return [
        shlex.split(line.replace("\\\n", " "), comments=True)[1:]
        for block in blocks
        for line in re.findall(r"^(?:understudy|us) (?:[^\n]*\\\n)*[^\n]*", block, re.MULTILINE)
    ]


PAGES = ("kubernetes.md", "injection.md", "istio.md", "operations.md")


@pytest.mark.parametrize("words", [words for page in PAGES for words in commands_of(page)], ids=" ".join)
def test_the_pages_commands_are_ones_that_there_are(words):
    command = cli.get_command(None, words[0])
    if isinstance(command, click.Group):
        command = command.get_command(None, words[1])
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}

    assert words[0] in COMMANDS
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= known


def test_every_page_has_its_commands_looked_at():
    assert len(commands_of("kubernetes.md")) >= 8
    assert any({"istio", "--xds-tls", "none"} <= set(words) for words in commands_of("istio.md"))
    assert any({"injector", "--self-signed"} <= set(words) for words in commands_of("injection.md"))
    assert any({"drill", "freeze"} <= set(words) for words in commands_of("operations.md"))
