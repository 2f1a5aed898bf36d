"""What the overview says of the loss of one member."""

import pytest

from understudy.deploy.console.headroom import headroom
from understudy.xds.planning.capacity import Capacity, Loss, Survivor


def loss(name: str, *cpu_then: float, without: int = 0, level: str = "member") -> Loss:
    survivors = tuple(Survivor(f"of-{name}-{at}", 0.1, cpu, 2.0, 5.0) for at, cpu in enumerate(cpu_then))
    return Loss(level, name, (name,), survivors, without)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (
            [loss("a", 0.2, 1.2), loss("b", 0.4)],
            "Any one member can go: the busiest of the others would use 60 % of its CPUs.",
        ),
        (
            [loss("a", 1.0), loss("b", 1.9)],
            "If b goes, the busiest of the others needs 95 % of its CPUs.",
        ),
        (
            [loss("east", 5.0, level="site"), loss("a", 1.0)],
            "Any one member can go: the busiest of the others would use 50 % of its CPUs.",
        ),
        ([loss("a")], "The load has no other member if a goes."),
        ([loss("a", 0.2, without=3)], "Any one member can go: the busiest of the others would use 10 % of its CPUs."),
        ([], "Room for the loss of a member is not known: no member serves."),
    ],
)
def test_the_worst_loss_of_one_member_is_told(losses, told):
    assert headroom(Capacity(tuple(losses), 3, 3, application=True)) == told


def test_cpu_without_the_applications_is_said_to_be_so():
    found = Capacity((loss("a", 0.2),), 2, 2, application=False)
    assert headroom(found).endswith("10 % of its CPUs. That is the CPU of the sidecars alone.")
