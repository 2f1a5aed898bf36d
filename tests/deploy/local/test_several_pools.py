"""Several pools on one machine: their places at the one front Envoy, and the commands of their processes."""

from itertools import count
from pathlib import Path

import pytest

from understudy.deploy.common.errors import DeployError
from understudy.deploy.common.layout import Layout
from understudy.deploy.local.local_layout import LocalSettings, plan_layout
from understudy.deploy.local.ports import PortPicker
from understudy.deploy.local.programs import programs
from understudy.deploy.local.several_pools import client_address, layouts_of, request_command, with_fronts
from understudy.statesync.pool.spec import PoolSpec


def spec(pool: str, **front: object) -> PoolSpec:
    return PoolSpec.model_validate({"pool": pool, **({"front": front} if front else {})})


def placed(*specs: PoolSpec) -> tuple[PoolSpec, ...]:
    ports = count(9000)
    return with_fronts(specs, lambda: f"127.0.0.1:{next(ports)}")


def test_a_pool_without_a_front_gets_a_port_of_its_own() -> None:
    cart = spec("cart", port=80, hosts=["shop"], paths=["/cart"])
    found = placed(cart, spec("desk"), spec("mail"))
    assert [one.front.port for one in found if one.front] == [80, 9000, 9001]
    assert found[0] is cart


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([spec("cart"), spec("cart")], "two files have the same pool"),
        ([spec("cart", port=80), spec("desk", port=80)], "pool 'desk': front: pool 'cart' has host *"),
    ],
)
def test_pools_that_cannot_be_together_are_refused_before_anything_starts(specs: list[PoolSpec], said: str) -> None:
    with pytest.raises(DeployError) as refused:
        placed(*specs)
    assert said in str(refused.value)


def test_one_envoy_and_one_control_server_serve_all_of_them() -> None:
    first, *more = placed(spec("cart"), spec("desk"))
    settings = LocalSettings(Path("x"), first, more=tuple(more), members=2, listen="127.0.0.1:8080")
    layout = Layout.decode(plan_layout(settings, PortPicker()).encode())
    assert layout.front.listen == "127.0.0.1:9000"
    assert (layout.of("desk") or layout).front.listen == "127.0.0.1:9001"
    assert (layout.of("cart"), layout.of("nobody")) == (layout, None)
    assert [[member.name for member in own.members] for own in layouts_of(layout)] == [
        ["cart-1", "cart-2"],
        ["desk-1", "desk-2"],
    ]
    commands = {program.name: program.command for program in programs(settings, layout, "/etcd")}
    assert len(commands) == 1 + 1 + 8 + 1
    assert "--all-pools" in commands["control-1"]
    assert commands["front-1"][commands["front-1"].index("--pools") + 1] == "all"
    assert commands["front-1"][commands["front-1"].index("--listen") + 1] == "127.0.0.1"
    sidecar = commands["desk-2/sidecar"]
    assert sidecar[sidecar.index("--pool") + 1] == "desk"


def sites_of_fronts(first: PoolSpec, *more: PoolSpec) -> list[str]:
    """The ``--site`` of each front Envoy of pools with members on two sites."""
    settings = LocalSettings(Path("x"), first, more=more, members=2, sites=("east", "west"), listen="127.0.0.1:8080")
    layout = Layout.decode(plan_layout(settings, PortPicker()).encode())
    commands = [one.command for one in programs(settings, layout, "etcd") if "envoy" in one.command]
    return [command[command.index("--site") + 1] if "--site" in command else "" for command in commands]


def test_each_site_of_a_spec_has_a_front_envoy_unless_envoys_make_no_difference_between_sites() -> None:
    sites = {"east": {"weight": 50}, "west": {"weight": 50}}
    with_sites = PoolSpec.model_validate({"pool": "cart", "sites": sites})
    assert sites_of_fronts(with_sites) == ["east", "west"]
    assert sites_of_fronts(PoolSpec(pool="cart")) == [""]
    assert sites_of_fronts(*placed(with_sites, spec("desk"))) == [""]


@pytest.mark.parametrize(
    ("front", "address", "command"),
    [
        ({"port": 80}, "http://h:80", "curl -i http://h:80/"),
        (
            {"port": 80, "hosts": ["a.b", "*"], "paths": ["/cart"]},
            "http://h:80/cart (Host: a.b)",
            "curl -i -H 'Host: a.b' http://h:80/cart",
        ),
        (
            {"port": 80, "hosts": ["*.b"], "tls": {"cert": "/c", "key": "/k"}},
            "https://h:80 (Host: *.b)",
            "curl -ik --connect-to any.b:80:h:80 https://any.b:80/",
        ),
    ],
)
def test_it_is_said_where_a_pool_is(front: dict[str, object], address: str, command: str) -> None:
    first, second = placed(spec("cart", **front), spec("desk"))
    settings = LocalSettings(Path("x"), first, more=(second,), listen="127.0.0.1:0")
    layout = plan_layout(settings, PortPicker())
    text = layout.front.listen
    assert client_address(layout, first).replace(text, "h:80") == address
    assert request_command(layout, first).replace(text, "h:80") == command
