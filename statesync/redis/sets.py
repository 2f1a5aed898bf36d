"""Commands on sets. Pure.

A set keeps the order in which its members were added; Redis's order depends on how it stores the set. The last member
that goes takes the key with it. A change of members keeps the expiry.
"""

from collections.abc import Callable, Mapping
from typing import Final

from understudy.statesync.redis.command import Apply, Args, Effect, Rule
from understudy.statesync.redis.reply import WRONG_TYPE, OrderedSet
from understudy.statesync.redis.value import Kind, Value, decode_set, encode_set

Members = dict[bytes, None]


def _members_of(before: Value | None) -> Members | None:
    """The members of the set, none if the key does not exist; None if the key holds something else."""
    if before is None:
        return {}
    return decode_set(before.data) if before.kind is Kind.SET else None


def _reading(arity: int, question: Callable[[Args, Mapping[bytes, None]], object]) -> Rule:
    """A command that answers from the members."""

    def apply(args: Args, before: Value | None, _: int) -> Effect:
        members = _members_of(before)
        return Effect(WRONG_TYPE if members is None else question(args, members), before)

    return Rule(arity, read=True, apply=apply)


def _changing(change: Callable[[Members, bytes], object]) -> Apply:
    """A command that changes the members one by one; its reply is how many came or went."""

    def apply(args: Args, before: Value | None, _: int) -> Effect:
        members = _members_of(before)
        if members is None:
            return Effect(WRONG_TYPE, before)
        count = len(members)
        for member in args:
            change(members, member)
        if len(members) == count:
            return Effect(0, before)
        expires = before.expires if before else None
        after = Value(Kind.SET, encode_set(members), expires) if members else None
        return Effect(abs(len(members) - count), after)

    return apply


RULES: Final = {
    b"SADD": Rule(-3, read=False, apply=_changing(lambda members, member: members.setdefault(member))),
    b"SREM": Rule(-3, read=False, apply=_changing(lambda members, member: members.pop(member, None))),
    b"SMEMBERS": _reading(2, lambda _, members: OrderedSet(tuple(members))),
    b"SISMEMBER": _reading(3, lambda args, members: int(args[0] in members)),
    b"SMISMEMBER": _reading(-3, lambda args, members: [int(member in members) for member in args]),
    b"SCARD": _reading(2, lambda _, members: len(members)),
}
