"""Prints what the explorer finds: ``python -m tests.model [large]``."""

import sys

from tests.model import copies
from tests.model.replication import bounds as replication
from tests.model.replication.world import Rules


def main(arguments: list[str]) -> None:
    """Explore the protocol as it is, then each mutant; and the same for copies of requests."""
    large = arguments == ["large"]
    for name, within in {**replication.SMALL, **(replication.LARGE if large else {})}.items():
        sys.stdout.write(f"\n{name}: {replication.explored(Rules(), within)}\n")
    for rule, (within, _) in replication.MUTANTS.items():
        found = replication.explored(Rules()._replace(**{rule: False}), within)
        sys.stdout.write(f"\nwithout {rule}: {found}\n")
    for name, of_copies in {**copies.SMALL, **(copies.LARGE if large else {})}.items():
        sys.stdout.write(f"\ncopies, {name}: {copies.explored(copies.Rules(), of_copies)}\n")
    for rule, (of_copies, _) in copies.MUTANTS.items():
        mutant = copies.Rules()._replace(**{rule: False})
        sys.stdout.write(f"\ncopies, without {rule}: {copies.explored(mutant, of_copies)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
