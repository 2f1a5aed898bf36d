"""Requests in RESP as a connection reads them: what arrives in pieces, and what only looks like a request."""

from itertools import pairwise
from unittest.mock import Mock

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.proxy.redis.requests import BadProtocol, RequestReader

LENGTHS = st.sampled_from([0, 1, 9, 10, 99, 100, 999, 1000, 1001, 10_000])
REQUESTS = st.lists(st.lists(LENGTHS.map(lambda length: b"*" * length), min_size=1, max_size=12), min_size=1)


def packed(requests: list[list[bytes]]) -> bytes:
    return b"".join(hiredis.pack_command(tuple(request)) for request in requests)  # type: ignore[arg-type]


@given(REQUESTS, st.data())
def test_requests_are_the_same_in_whatever_pieces_they_arrive(requests: list[list[bytes]], data: st.DataObject) -> None:
    whole = packed(requests)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=4))
    reader, found = RequestReader(trusted=True), list[list[bytes]]()
    for start, end in pairwise([0, *sorted(cuts), len(whole)]):
        some, fault = reader.feed(whole[start:end])
        assert fault is None
        found += some
    assert found == requests


@given(REQUESTS)
def test_requests_as_clients_write_them_are_left_to_hiredis(requests: list[list[bytes]]) -> None:
    reader = RequestReader(trusted=True)
    reader._parse_rest = Mock()  # type: ignore[method-assign]
    assert reader.feed(packed(requests)) == (requests, None)
    reader._parse_rest.assert_not_called()


@pytest.mark.parametrize(
    "line",
    [
        b"*1\r\n:1\r\n",
        b"*1\r\n$-1\r\n",
        b"*01\r\n*1\r\n$4\r\nPING\r\n",
        b"*2\r\n$4\r\nPING\r\n*0\r\n",
    ],
)
@pytest.mark.parametrize("before", [b"", b"*1\r\n$4\r\nPING\r\n"])
def test_what_hiredis_would_take_and_redis_would_not_is_refused(line: bytes, before: bytes) -> None:
    requests, fault = RequestReader(trusted=True).feed(before + line)
    assert requests == [[b"PING"]] * bool(before)
    assert isinstance(fault, BadProtocol)
