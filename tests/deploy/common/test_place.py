"""Where commands look for a pool: by options, by environment, by the note that ``up`` leaves."""

from understudy.deploy.common.layout import LAYOUT_FILE, STATE_DIRECTORY, FrontAddresses, Layout
from understudy.deploy.common.options import EtcdOptions, locate_pool


def test_another_pool_than_the_notes_is_looked_for_in_the_notes_etcd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / STATE_DIRECTORY).mkdir()
    note = Layout("cart", 1, ("http://127.0.0.1:4321",), (), (), FrontAddresses("front", "h:1", "h:2"), ())
    (tmp_path / STATE_DIRECTORY / LAYOUT_FILE).write_text(note.encode())
    nothing = EtcdOptions(None, None, None, None, None)

    own, other = locate_pool(nothing, None), locate_pool(nothing, "shop")
    assert own.etcd.endpoints == other.etcd.endpoints == note.etcd
    assert (own.pool, own.layout is not None) == ("cart", True)
    assert (other.pool, other.layout) == ("shop", None), "its processes are not those of the note"
    elsewhere = locate_pool(EtcdOptions("etcd-0:2379", None, None, None, None), "shop")
    assert elsewhere.etcd.endpoints == ("etcd-0:2379",)
