"""Two writers of one slot are found by the versions of acknowledged writes, and nothing else is taken for them."""

import pytest

from understudy.deploy.load.history_checker import Op
from understudy.deploy.load.second_writer import second_writers
from understudy.statesync.pool.slots import slot_of

SLOTS = 4
ONE, SAME, OTHER = (
    next(k for k in map(str, range(start, 99)) if slot_of(k, SLOTS) == s) for start, s in ((0, 1), (50, 1), (0, 2))
)


def write(began: float, ended: float, version: str, *, session: str = ONE, status: int = 200) -> Op:
    return Op(session, "write", began, ended, status, "cart-1", wrote="x", version=version)


@pytest.mark.parametrize(
    ("history", "found"),
    [
        ([write(1, 2, '"1.1"'), write(3, 4, '"2.1"'), write(5, 6, '"2.2"')], 0),
        ([write(1, 2, '"2.1"'), write(3, 4, '"1.9"')], 1),
        ([write(1, 2, '"2.1"'), write(3, 4, '"1.9"', session=SAME), write(3, 4, '"1.8"')], 2),
        ([write(1, 2, '"10.1"'), write(2, 4, '"9.9"')], 1),
        ([write(1, 3, '"2.1"'), write(2, 4, '"1.9"')], 0),
        ([write(1, 2, '"2.1"'), write(3, 4, '"1.9"', session=OTHER)], 0),
        ([write(1, 2, '"2.1"'), write(3, 4, '"1.9"', status=503)], 0),
        ([write(1, 2, '"2.1"'), write(3, 4, "")], 0),
        ([write(1, 2, ""), write(3, 4, "")], None),
    ],
    ids=["in order", "late", "other session", "numbers", "at once", "other slot", "failed", "no version", "none"],
)
def test_a_write_of_a_replaced_owner_is_found(history, found) -> None:
    assert second_writers(history, SLOTS) == found
