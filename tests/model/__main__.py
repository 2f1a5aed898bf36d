"""Prints what the explorer finds: ``python -m tests.model [large]``."""

import sys

from tests.model.bounds import LARGE, MUTANTS, SMALL
from tests.model.explorer import explore


def main(arguments: list[str]) -> None:
    """Explore the protocol as it is, then each mutant."""
    for name, (rules, bounds) in {**SMALL, **(LARGE if arguments == ["large"] else {})}.items():
        sys.stdout.write(f"{name}: {explore(rules, bounds)}\n")
    for rule, (rules, bounds, _) in MUTANTS.items():
        sys.stdout.write(f"\nwithout {rule}: {explore(rules._replace(**{rule: False}), bounds)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
