"""The benchmark of sites judges rightly: what a row adds up to, classes of sessions, places of processes."""

from dataclasses import replace
from pathlib import Path

from bench import exposure
from bench.exposure import Kill
from bench.sites import class_of, spec_of
from bench.sites_report import Outcome, rows_of, summary
from understudy.deploy.local.linked_pool import moved
from understudy.deploy.local.local_layout import LocalSettings, plan_layout
from understudy.deploy.local.ports import PortPicker
from understudy.deploy.local.site_networks import Network

LOSS = Outcome(
    kind="loss",
    site="east",
    leader="east",
    requests=100,
    failed=1,
    gaps=(10.0, 300.0),
    lost={"sync": 0, "replicas": 1},
    moved=2,
    needless=0,
    errors=(),
    seconds=10.0,
    late=1.0,
)


def test_a_row_adds_its_events_up_and_takes_the_slowest_session_of_each():
    row = summary([LOSS, replace(LOSS, gaps=(20.0, 500.0), lost={"sync": 0, "replicas": 0})])
    assert (row["events"], row["requests"], row["failed"], row["moved"]) == (2, 200, 2, 4)
    assert row["lost"] == {"sync": 0, "replicas": 1}
    assert row["worst_ms"]["p100"] == 500
    assert [one["worst_ms"] for one in row["each"]] == [300, 500]


def test_losses_with_and_without_the_leader_of_etcd_have_rows_of_their_own():
    switch = replace(LOSS, kind="switch")
    rows = rows_of([LOSS, replace(LOSS, leader="west"), replace(LOSS, leader="witness"), switch])
    assert {name: row["events"] for name, row in rows.items()} == {
        "loss of a site": 3,
        "loss, etcd's leader on this site": 1,
        "loss, etcd's leader elsewhere": 2,
        "planned switch": 1,
    }


def test_the_class_of_a_session_is_what_the_spec_says():
    rules = spec_of().durability_rules
    for key in ("Az", "cz", "zz", "-z", "9z"):
        told = next((rule.durability for rule in rules if key.startswith(rule.prefix)), spec_of().durability)
        assert class_of(key) == told


def test_each_process_has_the_address_of_its_site(tmp_path: Path):
    ports = PortPicker()
    settings = LocalSettings(tmp_path, spec_of(), members=4, controls=2, etcds=3, sites=("east", "west"))
    net = Network("net", {"east": "10.0.0.1", "west": "10.0.0.2", "witness": "10.0.0.3"})
    layout = moved(plan_layout(settings, ports), net)
    ports.close()
    assert [place.peer.rpartition(":")[0] for place in layout.members] == ["10.0.0.1", "10.0.0.2"] * 2
    assert [url.rpartition(":")[0] for url in layout.etcd] == [f"http://10.0.0.{number}" for number in (1, 2, 3)]
    assert layout.front.listen.startswith("10.0.0.1:")
    assert layout.site_fronts[0].admin.startswith("10.0.0.2:")
    assert "127.0.0.1" not in layout.encode()


def test_a_statement_holds_if_no_more_sessions_and_no_older_writes_were_lost():
    def a_kill(sessions, lost, oldest_ms, present=9):
        stated = {"sessions": sessions, "bound_ms": 1100}
        found = {"replicas": lost, "sync": 0}
        return Kill(
            stated, present, after_ms=500, alone=9, written=50, lost=found, oldest_ms=oldest_ms, seconds=9, load=1
        )

    kills = [a_kill(7, 7, 1100), a_kill(7, 8, 1101), a_kill(None, 0, 0, present=0), a_kill(12, 10, 900)]
    assert [(one.bounded, one.bounded_ms) for one in kills] == [
        (True, True),
        (False, False),
        (False, True),
        (True, True),
    ]
    table = exposure.table({"60 clients": kills})
    assert "| stated sessions ≥ lost ones | 2 of 4 |" in table
    assert "| the same, had the count of the moment been stated | 3 of 4 |" in table
    assert "| kills that lost a write older than `checkpoint_ms` | 2 |" in table
