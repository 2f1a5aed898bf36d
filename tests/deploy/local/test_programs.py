"""The command lines of a local pool's processes."""

from pathlib import Path

import pytest

from understudy.deploy.local.local_layout import LocalSettings, plan_layout
from understudy.deploy.local.ports import PortPicker
from understudy.deploy.local.programs import programs
from understudy.statesync.pool.spec import PoolSpec


@pytest.mark.parametrize(("election", "heartbeat"), [(200, "20"), (1000, "100")])
def test_every_member_of_etcd_has_the_election_timeout_asked_for_and_ten_heartbeats_in_it(election, heartbeat):
    settings = LocalSettings(Path("x"), PoolSpec(pool="cart"), etcds=3, etcd_election_ms=election)
    ports = PortPicker()
    try:
        commands = [one.command for one in programs(settings, plan_layout(settings, ports), "/etcd")[:3]]
    finally:
        ports.close()
    for command in commands:
        assert command[command.index("--election-timeout") + 1] == str(election)
        assert command[command.index("--heartbeat-interval") + 1] == heartbeat
