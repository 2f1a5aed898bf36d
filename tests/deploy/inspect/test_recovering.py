"""What ``status`` says about members that wait to take slots back."""

from understudy.deploy.inspect.recovering import recovery_warnings


def test_a_member_that_waits_is_told_with_the_time_that_is_left():
    statuses = [
        {"recovering": [{"member": "cart-2", "seconds": 12.4}, {"member": "cart-1", "seconds": 0.0}]},
        {"recovering": []},
        {"pool": "an older control server's answer"},
        "no answer",
    ]
    assert list(recovery_warnings(statuses)) == [
        "cart-1 waits to take slots back: it was stable for long enough, and does not have all copies yet",
        "cart-2 waits to take slots back: it must be stable for 12 s more (stable_for)",
    ]
