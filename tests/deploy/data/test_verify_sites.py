"""``verify``: slots that are on one site for too long, as their actives say."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from understudy.deploy.data.verify import Verifier, VerifyReport
from understudy.deploy.inspect.members import MemberError, PeerApiClient
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.keys import PoolKeys
from understudy.statesync.pool.state import PoolState
from understudy.statesync.sessions.session_crypto import PLAIN


class Peers:
    """The peer APIs of members: what each answers of its slots' replication; None: it does not answer."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.addresses = dict.fromkeys(said, "127.0.0.1:1")
        self._said = said

    async def get(self, member: str, _path: str) -> Any:
        if self._said[member] is None:
            raise MemberError(member, "no answer")
        return {"replication": self._said[member]}


async def verified(client: EtcdClient, pool: str, slots: list[int], said: Mapping[str, Any]) -> VerifyReport:
    """The report of a pool without slots of its own, so that only what members say counts."""
    members = cast("PeerApiClient", Peers(said))
    verifier = Verifier(client, PoolState(PoolKeys(pool)), members, codec=PLAIN, progress=lambda _: None)
    return await verifier.run(slots, repair=False)


def late(*slots: int) -> dict[str, Any]:
    return {"one_site": {"slots": len(slots), "seconds": 31.0, "late": list(slots)}}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"a": late(), "b": late()}, []),
        ({"a": late(7, 2), "b": late(2, 4)}, [2, 4, 7]),
        ({"a": late(3), "b": late(9)}, [3]),
        ({"a": {}, "b": late(1), "c": None, "d": "garbage"}, [1]),
    ],
    ids=["none", "of several members", "only the slots that are verified", "others do not say"],
)
async def test_slots_that_are_on_one_site_for_too_long_are_named_and_the_pool_is_not_fine(
    client: EtcdClient, pool_name: str, said: Mapping[str, Any], found: list[int]
) -> None:
    report = await verified(client, pool_name, list(range(8)), said)
    assert (report.one_site, report.fine) == (found, not found)
    assert (report.view(5)["one_site"], report.view(5)["same"]) == (found, not found)
