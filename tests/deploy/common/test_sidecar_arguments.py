"""One source for the sidecar's command line: what it says is what the command understands, wherever it is used."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import click

from understudy.deploy.cli.commands_sidecar import sidecar
from understudy.deploy.common.layout import ControlAddresses, FrontAddresses, Layout, MemberAddresses
from understudy.deploy.common.sidecar_arguments import SidecarOptions, sidecar_arguments
from understudy.deploy.kubernetes.base.injection_settings import InjectionSettings
from understudy.deploy.kubernetes.injection.pod import inject
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.programs import member_place, programs
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.statesync.pool.spec import PoolSpec
from understudy.statesync.tls.pem_files import PemFiles

FILES = PemFiles(Path(__file__), Path(__file__), Path(__file__))
EVERYTHING = SidecarOptions(
    member="cart-1",
    pool="cart",
    etcd=EtcdSettings(("http://127.0.0.1:2379", "http://127.0.0.1:2380"), FILES),
    app="127.0.0.1:8000",
    app_health="/healthz",
    session_api="127.0.0.1:7600",
    peer="127.0.0.1:7601",
    health="127.0.0.1:7602",
    metrics="127.0.0.1:7603",
    redis="127.0.0.1:7604",
    site="east",
    zone="zone-a",
    app_version="v2",
    node="node-1",
    weight="20",
    priority="2",
    drain_seconds="7.5",
    checks="[{name: db, http: 'http://127.0.0.1:1/'}]",
    session_keys=__file__,
    log_level="debug",
    tls=FILES,
    insecure=True,
)


def test_every_option_is_one_that_the_command_has() -> None:
    assert all(getattr(EVERYTHING, field.name) for field in dataclasses.fields(EVERYTHING))
    arguments = sidecar_arguments(EVERYTHING)
    assert arguments[:3] == ("--log-level", "debug", "sidecar")
    context = sidecar.make_context("sidecar", list(arguments[3:]))
    given = {
        name for name in context.params if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    assert given == {option.lstrip("-").replace("-", "_") for option in arguments[3:] if option.startswith("--")} - {
        "etcd"
    } | {"etcd_endpoints"}
    assert context.params["peer"] == "127.0.0.1:7601"
    assert context.params["drain_seconds"] == 7.5


def test_what_is_not_said_is_left_to_the_command() -> None:
    place = dataclasses.replace(EVERYTHING, site="", metrics="", tls=None, insecure=False, log_level="")
    arguments = sidecar_arguments(place)
    assert arguments[0] == "sidecar"
    assert not {"--site", "--metrics", "--tls-cert", "--insecure", "--log-level"} & set(arguments)


def test_the_sidecars_of_the_demo_are_started_with_these_arguments() -> None:
    members = tuple(MemberAddresses(f"cart-{n}", f"h:{n}1", f"h:{n}2", f"h:{n}3", f"h:{n}4") for n in (1, 2))
    layout = Layout(
        "cart",
        1,
        ("http://h:1",),
        ("http://h:2",),
        (ControlAddresses("c", "h:3", "h:4"),),
        FrontAddresses("f", "h", "h"),
        members,
    )
    settings = LocalSettings(Path("x"), PoolSpec(pool="cart"))
    commands = {program.name: program.command for program in programs(settings, layout, "/etcd")}
    for place in members:
        ours = sidecar_arguments(member_place(settings, layout, place))
        assert commands[f"{place.name}/sidecar"][-len(ours) :] == ours


def test_the_sidecars_of_pods_have_every_option_that_those_of_the_demo_have() -> None:
    members = (MemberAddresses("cart-1", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"),)
    layout = Layout("cart", 1, ("http://h:1",), (), (), FrontAddresses("f", "h", "h"), members)
    local = sidecar_arguments(member_place(LocalSettings(Path("x"), PoolSpec(pool="cart")), layout, members[0]))
    pod = {
        "metadata": {"annotations": {"understudy.io/pool": "cart"}},
        "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8000}]}]},
    }
    injected = inject(pod, InjectionSettings("understudy-sidecar:1", ("http://h:1",))).pod
    arguments = injected["spec"]["initContainers"][0]["args"]
    assert options(local) <= options(arguments)
    # Read by the command itself, once the variables have values, they say the same of everything but addresses.
    read = [
        sidecar.make_context("sidecar", [filled(part) for part in line[3:]]).params
        for line in (local, tuple(arguments))
    ]
    for same in ("member", "pool", "etcd_endpoints", "app_health", "allow_command_checks", "weight", "priority"):
        assert read[0][same] == read[1][same]


def options(arguments: Iterable[str]) -> set[str]:
    return {part for part in arguments if part.startswith("--")}


def filled(part: str) -> str:
    for name, value in {"MEMBER": "cart-1", "POD_IP": "127.0.0.1", "SITE": "", "NODE": "n"}.items():
        part = part.replace(f"$(UNDERSTUDY_{name})", value)
    return part
