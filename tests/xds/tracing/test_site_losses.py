"""Takeovers from all active members of a site at once make one loss of the site, and others make none."""

from dataclasses import replace

import pytest

from tests.xds.tracing.test_failover_timing import MS, SECOND, TAKEOVER
from understudy.telemetry.tracing import names
from understudy.telemetry.tracing.ids import takeover_seed
from understudy.xds.tracing.failover_timing import OwnershipChange
from understudy.xds.tracing.site_losses import EndedTakeover, SiteLoss, SiteLosses

SITES = {"e-1": "east", "e-2": "east", "w-1": "west"}


def takeover(member: str, after: float = 0.0, site: str = "east") -> OwnershipChange:
    """A member's death, so many seconds after the first."""
    ids = takeover_seed("cart", member, "one")
    return replace(
        TAKEOVER,
        traceparent=ids.traceparent,
        subject=member,
        site=site,
        began=TAKEOVER.began + round(after * SECOND),
        moving={0: "one", 1: "one"},
    )


def ended(change: OwnershipChange, **attributes: bool) -> EndedTakeover:
    return EndedTakeover(change, change.began + 80 * MS, attributes)


def found(*deaths: OwnershipChange, sites: dict[str, str] = SITES) -> list[SiteLoss | None]:
    losses = SiteLosses()
    for one in deaths:
        losses.began(one, sites)
    return [losses.ended(ended(one)) for one in deaths]


def test_the_death_of_all_members_of_a_site_is_one_loss_told_when_the_last_takeover_has_ended():
    second, first = takeover("e-2", 0.2), takeover("e-1")

    nothing, loss = found(second, first)

    assert nothing is None
    assert loss is not None
    assert [one.change.subject for one in loss.takeovers] == ["e-1", "e-2"]
    told = loss.attributes()
    assert (told[names.SITE], told[names.SLOTS], told[names.FROM]) == ("east", 4, "e-1, e-2")
    assert told[names.TAKEOVERS] == f"{first.trace}, {second.trace}"
    assert loss.ids.hex not in loss.traces


def test_members_that_die_one_after_the_other_within_the_time_are_one_loss():
    losses = SiteLosses()
    deaths = takeover("e-1"), takeover("e-2", 14.0)
    told = []
    for one in deaths:
        losses.began(one, SITES)
        told.append(losses.ended(ended(one)))
    assert [one is not None for one in told] == [False, True]


@pytest.mark.parametrize(
    ("deaths", "sites"),
    [
        ([takeover("e-1")], SITES),
        ([takeover("e-1"), takeover("e-2", 15.1)], SITES),
        ([takeover("e-1"), takeover("e-2")], {"e-1": "east", "e-2": "east"}),
        ([takeover("e-1"), takeover("e-2")], {"e-1": "east", "e-2": "east", "w-1": ""}),
        ([takeover("w-1", site="west")], SITES),
        ([takeover("e-1", site=""), takeover("e-2", site="")], dict.fromkeys(SITES, "")),
    ],
    ids=["one of two", "too late", "the only site", "the others have no site", "its only member", "no sites"],
)
def test_other_deaths_are_no_loss_of_a_site(deaths: list[OwnershipChange], sites: dict[str, str]):
    assert not any(found(*deaths, sites=sites))


def test_a_loss_of_which_a_takeover_did_not_end_in_time_is_not_measured():
    losses = SiteLosses()
    for one in (takeover("e-1"), takeover("e-2")):
        losses.began(one, SITES)
    losses.ended(EndedTakeover(takeover("e-1"), 0, {names.UNMEASURED: True}))
    loss = losses.ended(ended(takeover("e-2")))
    assert loss is not None
    assert loss.attributes()[names.UNMEASURED] is True
