"""Since when slots have had current copies on one site only."""

from understudy.statesync.pool.site_copies import SiteExposure


def test_a_slot_keeps_its_age_while_it_stays_on_one_site_and_loses_it_when_it_does_not() -> None:
    exposure = SiteExposure()
    exposure.look([1, 2], 100.0)
    exposure.look([2, 3], 120.0)
    assert (exposure.slots, exposure.oldest(140.0), exposure.older_than(30.0, 140.0)) == (2, 40.0, [2])
    exposure.look([3], 141.0)
    exposure.look([2, 3], 142.0)
    assert (exposure.oldest(145.0), exposure.older_than(30.0, 145.0)) == (25.0, [])
    exposure.look([], 150.0)
    assert (exposure.slots, exposure.oldest(200.0)) == (0, 0.0)
