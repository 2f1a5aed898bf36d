"""What travels between sidecars as JSON comes back as it was."""

import json

import pytest

from understudy.proxy.peers.peer_protocol import Taken
from understudy.statesync.etcd.client import Kv
from understudy.statesync.pool.records import Owner
from understudy.statesync.pool.state import At

MARKER = Kv("/understudy/v1/p/commits/m1", b"boot:7\xff", 5, 9, 3)


@pytest.mark.parametrize("marker", [None, MARKER])
def test_what_a_peer_has_taken_is_read_as_it_was_told(marker: Kv | None) -> None:
    taken = Taken({3: At(Owner("m2", "1", 4), 17)}, marker)
    assert Taken.of(json.loads(json.dumps(taken.as_json()))) == taken
