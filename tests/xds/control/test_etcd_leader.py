"""The preferred leader of etcd: when the lead is moved, and that a real cluster follows."""

import pytest

from tests.harness.etcd import running_cluster
from tests.harness.waiting import until
from understudy.statesync.etcd.client import EndpointStatus, EtcdClient
from understudy.statesync.etcd.settings import EtcdSettings
from understudy.xds.control.etcd_leader import BEHIND_MOST, PreferredLeader, hand_over


def status(name: str, *, leads: bool = False, index: int = 9000, **other: object) -> EndpointStatus:
    known = {"errors": (), "member_id": ord(name), **other}
    return EndpointStatus(name, "3.5.9", leads, 1, raft_index=index, **known)


def silent(name: str) -> EndpointStatus:
    return EndpointStatus(name, "", leader=False, db_size=0, errors=("no connection",))


@pytest.mark.parametrize(
    ("statuses", "moves"),
    [
        ([status("a", leads=True), status("b"), status("c")], True),
        ([status("a"), status("b"), status("c", leads=True)], False),  # it leads already
        ([status("a"), status("b"), status("c")], False),  # nobody leads, so nobody can hand over
        ([silent("a"), status("b"), status("c")], False),
        ([status("a", leads=True), status("b"), silent("c")], False),
        ([status("a", leads=True), status("b"), status("c", learner=True)], False),
        ([status("a", leads=True), status("b"), status("c", errors=("NOSPACE",))], False),
        ([status("a", leads=True), status("b"), status("c", index=9000 - BEHIND_MOST)], True),
        ([status("a", leads=True), status("b"), status("c", index=8999 - BEHIND_MOST)], False),
        ([status("a", leads=True), status("b")], False),
    ],
)
def test_the_lead_goes_to_the_preferred_member_only_while_it_can_lead(statuses, moves) -> None:
    found = hand_over(statuses, "c")
    assert (found is not None) is moves
    if found is not None:
        assert [one.endpoint for one in found] == ["a", "c"]


async def test_a_real_cluster_is_led_by_the_preferred_member_and_again_after_its_return() -> None:
    async with running_cluster() as servers:
        endpoints = tuple(server.endpoint for server in servers)
        async with EtcdClient(endpoints) as client:

            async def leader() -> str:
                return next((one.endpoint for one in await client.status() if one.leader), "")

            async def led_by(preferred: str) -> None:
                moving = PreferredLeader(client, EtcdSettings(endpoints, leader=preferred))

                async def leads() -> bool:
                    await moving.look()
                    return await leader() == preferred

                await until(leads, what=f"{preferred} leads")

            for endpoint in endpoints:
                await led_by(endpoint)
            servers[2].stop()
            await until(leader, what="another member leads")
            servers[2].spawn()
            await servers[2].ready()
            await led_by(endpoints[2])
