"""The order in which a worker begins its tests."""

from typing import Any

from tests.conftest import _mixed


def test_tests_that_share_something_stay_together_among_the_others() -> None:
    long: list[list[Any]] = [["pages 1", "pages 2", "pages 3"], ["kill"], ["fault"]]
    short: list[list[Any]] = [[f"quick {number}"] for number in range(9)]
    short.insert(1, ["wheel 1", "wheel 2"])
    order = _mixed(long, short)
    assert sorted(order) == sorted(item for one in long + short for item in one)
    for one in long + short:
        begin = order.index(one[0])
        assert order[begin : begin + len(one)] == one
    assert order.index("kill") < order.index("fault") < order.index("quick 8")
