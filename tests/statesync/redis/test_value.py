"""Values and their stored form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.statesync.redis.value import (
    CorruptValue,
    Kind,
    content_type_of,
    decode_hash,
    decode_set,
    encode_hash,
    encode_set,
    kind_of,
)


@given(fields=st.dictionaries(st.binary(max_size=9), st.binary(max_size=9), max_size=9))
def test_a_hash_comes_back_in_its_order(fields: dict[bytes, bytes]) -> None:
    assert list(decode_hash(encode_hash(fields)).items()) == list(fields.items())
    assert list(decode_set(encode_set(fields))) == list(fields)


def test_the_stored_form_is_resp2() -> None:
    assert encode_hash({b"f": b"\r\n", b"": b"v"}) == b"*4\r\n$1\r\nf\r\n$2\r\n\r\n\r\n$0\r\n\r\n$1\r\nv\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"*2\r\n$1\r\na\r\n",
        b"*1\r\n$1\r\na\r\nmore",
        b"*1\r\n$1\r\na\r\n*0\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n-ERR no\r\n",
        b"*-1\r\n",
        b"$1\r\na\r\n",
        b"*4\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"*99999999999999\r\n",
        b"*1\r\n" * 5000,
        b"?",
    ],
)
def test_other_bytes_are_no_hash_and_no_set(data: bytes) -> None:
    with pytest.raises(CorruptValue):
        decode_hash(data)
    with pytest.raises(CorruptValue):
        decode_set(data)


def test_a_hash_needs_a_value_for_each_field() -> None:
    with pytest.raises(CorruptValue):
        decode_hash(b"*1\r\n$1\r\na\r\n")


def test_each_kind_has_its_content_type() -> None:
    assert {kind: kind_of(content_type_of(kind)) for kind in Kind} == {kind: kind for kind in Kind}
    assert content_type_of(Kind.STRING) == "application/octet-stream"
    assert kind_of("application/json") is Kind.STRING
