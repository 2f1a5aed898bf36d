"""Where the processes of a local pool on sites run: with a witness, and on two sites without a third."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from understudy.deploy.cli.commands_local import up
from understudy.deploy.common.layout import Layout
from understudy.deploy.local.local_layout import LocalSettings, plan_layout
from understudy.deploy.local.ports import PortPicker
from understudy.statesync.pool.spec import PoolSpec


def layout(*, witness: bool, etcds: int = 3, controls: int = 2) -> Layout:
    settings = LocalSettings(
        Path("x"),
        PoolSpec(pool="cart"),
        etcds=etcds,
        controls=controls,
        sites=("east", "west"),
        witness=witness,
    )
    ports = PortPicker()
    try:
        return Layout.decode(plan_layout(settings, ports).encode())
    finally:
        ports.close()


def test_without_a_witness_two_members_of_etcd_are_on_the_first_site_and_none_is_to_lead() -> None:
    with_third, without = layout(witness=True), layout(witness=False, controls=3)
    assert with_third.etcd_sites == ("east", "west", "")
    assert with_third.witness == with_third.etcd[2]
    assert without.etcd_sites == ("east", "west", "east")
    assert without.witness == ""
    assert [control.site for control in without.controls] == ["east", "west", "east"]
    assert without.etcd_of("west")[0] == without.etcd[1]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--no-witness"], "is for two sites"),
        (["--no-witness", "--sites", "east,west,north", "--etcds", "3"], "is for two sites"),
        (["--no-witness", "--sites", "east,east", "--etcds", "3"], "is for two sites"),
        (["--no-witness", "--sites", "east,west"], "give --etcds 3"),
        (["--no-witness", "--distant", "east,west"], "leave one out"),
    ],
)
def test_no_witness_is_refused_where_there_is_no_odd_member_of_etcd(arguments: list[str], why: str) -> None:
    done = CliRunner().invoke(up, arguments)
    assert (done.exit_code, why in done.output) == (2, True), done.output
