"""The header of a stored session: the quick way to read it finds what the other one does."""

import json
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from understudy.statesync.sessions.session_header import INDEX_MOST, SessionHeader, read_any_header, read_header

_WORDS = st.text(max_size=4) | st.binary(max_size=4).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([INDEX_MOST, INDEX_MOST + 1, 2**63 - 1, 2**63, -(2**63), 2**70]),
    st.floats(),
    _WORDS,
    st.lists(st.lists(st.one_of(_WORDS, st.integers(0, 9), st.none()), max_size=5), max_size=3),
    st.lists(st.tuples(_WORDS, _WORDS, st.integers(0, 9), st.integers(0, 2**63)), max_size=3),
)
_NAMES = st.sampled_from(["epoch", "index", "expires", "type", "deleted", "since", "answers", "later"])
_USUAL = {"epoch": 5, "index": 7, "expires": 9000, "type": "text/plain"}


@example(changed={"since": 4, "deleted": True, "answers": [["a", "b", 200, 3]]}, missing={"index"})
@given(changed=st.dictionaries(_NAMES, _VALUES, max_size=4), missing=st.sets(_NAMES, max_size=1))
def test_a_header_is_read_quickly_or_slowly_with_the_same_result(changed: dict[str, object], missing: set[str]) -> None:
    header = {name: value for name, value in (_USUAL | changed).items() if name not in missing}
    line = json.dumps(header).encode()

    def result(read: Callable[[bytes, int], SessionHeader]) -> SessionHeader | None:
        try:
            return read(line, 3)
        except ValueError:
            return None

    assert result(read_header) == result(read_any_header)
