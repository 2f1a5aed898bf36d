"""Which calls matter more when there is too much to do: the priorities of a pool and of its sessions. Pure."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Priority = Literal["critical", "normal", "low"]
"""Under overload low calls are refused first, then normal ones if there are critical ones beside them."""

PRIORITIES: tuple[Priority, ...] = ("critical", "normal", "low")


CONCURRENT_LOW = 100
"""Requests that one front Envoy has under way at one member of a pool of low priority, unless the spec says a number.

A member that answers in 20 ms carries 5,000 a second with as many. Beyond that more of them only make each slower."""


class PriorityRule(BaseModel):
    """The priority of calls to sessions whose keys begin with ``prefix``."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    prefix: Annotated[str, Field(min_length=1, max_length=200)]
    priority: Priority


def priority_by_rule(rules: Sequence[PriorityRule], key: str, otherwise: Priority) -> Priority:
    """The priority of the longest prefix that fits a session key, ``otherwise`` if none does."""
    fitting = [rule for rule in rules if key.startswith(rule.prefix)]
    return max(fitting, key=lambda rule: len(rule.prefix)).priority if fitting else otherwise
