"""Takeovers from all members of a site at once are told as the loss of the site, and others are not."""

from typing import Any

from understudy.deploy.inspect.site_losses import lost_sites
from understudy.deploy.inspect.tables import change_text

SITES = {"e-1": "east", "e-2": "east", "w-1": "west", "w-2": "west"}


def takeover(source: str, started: float, kind: str = "takeover") -> dict[str, Any]:
    return {"kind": kind, "from": [source], "started": started, "to": {"w-1": 4}, "cause": "lost", "drill": ""}


def test_the_death_of_all_members_of_a_site_is_the_loss_of_the_site() -> None:
    rows = [takeover("e-1", 100.0), takeover("e-2", 109.0), takeover("w-1", 109.0)]

    assert lost_sites(rows, SITES) == ["east", "east", ""]
    assert change_text({**rows[0], "lost_site": "east"}).startswith("site east lost: takeover e-1 > w-1 (4)")


def test_deaths_at_other_times_handovers_and_one_site_alone_are_no_loss_of_a_site() -> None:
    assert lost_sites([takeover("e-1", 100.0), takeover("e-2", 130.0)], SITES) == ["", ""]
    assert lost_sites([takeover("e-1", 100.0), takeover("e-2", 100.0, "handover")], SITES) == ["", ""]
    assert lost_sites([takeover("e-1", 100.0), takeover("e-2", 100.0)], {"e-1": "", "e-2": ""}) == ["", ""]
    assert lost_sites([takeover("e-1", 100.0)], {"e-1": "east", "w-1": "west"}) == [""]
