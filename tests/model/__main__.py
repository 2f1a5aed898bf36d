"""Prints what the explorer finds: ``python -m tests.model [large]``."""

import sys

from tests.model import copies
from tests.model.bounds import LARGE, MUTANTS, SMALL
from tests.model.explorer import explore
from tests.model.replication import bounds as replication
from tests.model.replication.world import Rules


def main(arguments: list[str]) -> None:
    """Explore the protocol as it is, then each mutant; and the same for copies of requests and for replication."""
    for name, (rules, bounds) in {**SMALL, **(LARGE if arguments == ["large"] else {})}.items():
        sys.stdout.write(f"{name}: {explore(rules, bounds)}\n")
    for rule, (rules, bounds, _) in MUTANTS.items():
        sys.stdout.write(f"\nwithout {rule}: {explore(rules._replace(**{rule: False}), bounds)}\n")
    for name, bounds_of_copies in {**copies.SMALL, **(copies.LARGE if arguments == ["large"] else {})}.items():
        sys.stdout.write(f"\ncopies, {name}: {copies.explored(copies.Rules(), bounds_of_copies)}\n")
    for rule, (bounds_of_copies, _) in copies.MUTANTS.items():
        mutant = copies.Rules()._replace(**{rule: False})
        sys.stdout.write(f"\ncopies, without {rule}: {copies.explored(mutant, bounds_of_copies)}\n")
    larger = replication.LARGE if arguments == ["large"] else {}
    for name, within in {**replication.SMALL, **larger}.items():
        sys.stdout.write(f"\nreplication, {name}: {replication.explored(Rules(), within)}\n")
    for rule, (within, _) in replication.MUTANTS.items():
        found = replication.explored(Rules()._replace(**{rule: False}), within)
        sys.stdout.write(f"\nreplication, without {rule}: {found}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
