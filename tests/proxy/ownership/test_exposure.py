"""What etcd lacked at the most of late."""

from understudy.proxy.ownership.exposure import Exposure


def test_nothing_unsaved_is_no_exposure_however_late_etcd_is() -> None:
    exposure = Exposure()
    exposure.look([], 2.0, 100.0)
    assert (exposure.most(100.0), exposure.bytes) == ((0, 0, 0), 0)
