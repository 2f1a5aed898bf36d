"""Lost members that etcd has forgotten stay in the operator's sight."""

from understudy.deploy.inspect.missing_members import missing_warnings


def told(member: str, seconds: int) -> dict[str, object]:
    return {"missing": [{"member": member, "cause": "connection refused", "seconds": seconds}]}


def test_each_missing_member_is_named_once_by_who_has_missed_it_longest():
    answers = [told("b", 30), told("b", 90), told("a", 600), {}, {"missing": []}, "control-1 does not answer"]
    assert list(missing_warnings(answers)) == [
        "a was lost 10 min ago and has not come back: connection refused",
        "b was lost 90 s ago and has not come back: connection refused",
    ]
