"""The etcd keys of a pool.

One prefix per pool, ``/understudy/v1/<pool>/``. Members and control servers watch the ranges of its records
(:attr:`PoolKeys.records`). Within a range changes come in the order of etcd's revisions, and those of one transaction
together. So the records that a claim writes, owners and sync sets, are in one range.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from understudy.statesync.etcd.key_range import KeyRange, prefix_range
from understudy.statesync.pool.slots import MAX_SLOTS

ROOT = "/understudy/v1/"
GROUPS = "/understudy/v1-groups/"
_DIGITS = 5


class AuditKeys(ABC):
    """Key names of an audit log, below :attr:`prefix`. Its records say that they are about ``subject``."""

    @property
    @abstractmethod
    def prefix(self) -> str:
        """Everything of the subject starts with this."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What the records are about."""

    @cached_property
    def audit(self) -> str:
        """Prefix of the audit log.

        In a pool it stands just before the commit markers, so that :attr:`PoolKeys.records` leaves out both as one
        range.
        """
        return f"{self.prefix}audit/"

    def audit_records(self, chain: str) -> str:
        """Prefix of the records of one chain of the audit log."""
        return f"{self.audit}{chain}/"

    def audit_record(self, chain: str, number: int) -> str:
        """One record of the audit log; within a chain the keys are in the order of time."""
        return f"{self.audit_records(chain)}{number:012d}"

    def audit_end(self, chain: str) -> str:
        """The mark of the newest record of a chain of the audit log."""
        return f"{self.audit}end/{chain}"

    def audit_anchor(self, chain: str) -> str:
        """The mark of the last record that retention removed from a chain of the audit log."""
        return f"{self.audit}anchor/{chain}"


@dataclass(frozen=True)
class PoolKeys(AuditKeys):
    """Key names of one pool. The prefixes are made once: every write and every change from etcd needs some."""

    pool: str

    @property
    def subject(self) -> str:
        """The pool's name."""
        return self.pool

    @cached_property
    def prefix(self) -> str:
        """Everything of the pool starts with this."""
        return f"{ROOT}{self.pool}/"

    @cached_property
    def spec(self) -> str:
        """The pool spec; written by the operator."""
        return f"{self.prefix}spec"

    @cached_property
    def front_spec(self) -> str:
        """The newest spec that front Envoys of several pools accepted. It stands between the spec and the table."""
        return f"{self.prefix}spec-at-fronts"

    @cached_property
    def front_hold(self) -> str:
        """There while front Envoys reject a spec: its revision. It stands between the spec and the table too."""
        return f"{self.prefix}spec-rejected"

    @cached_property
    def table(self) -> str:
        """The slot table; written by the leading control server."""
        return f"{self.prefix}table"

    @cached_property
    def leader(self) -> str:
        """The leading control server's name; lives on its lease."""
        return f"{self.prefix}leader"

    @cached_property
    def members(self) -> str:
        """Prefix of the member records."""
        return f"{self.prefix}members/"

    @cached_property
    def admin(self) -> str:
        """Prefix of the operator's intents for members."""
        return f"{self.prefix}admin/"

    @cached_property
    def site_intents(self) -> str:
        """Prefix of the operator's intents for whole sites."""
        return f"{self.admin}site/"

    def dependency(self, site: str, name: str) -> str:
        """The key that is there while something that a site needs is down."""
        return f"{self.site_intent(site)}/{name}"

    @cached_property
    def take_over(self) -> str:
        """The last time that a site went on with its part of etcd alone. It stands behind the table."""
        return f"{self.prefix}take-over"

    @cached_property
    def controls(self) -> str:
        """Prefix of the control servers' addresses."""
        return f"{self.prefix}controls/"

    @cached_property
    def owners(self) -> str:
        """Prefix of the owner records."""
        return f"{self.prefix}owners/"

    @cached_property
    def sync_sets(self) -> str:
        """Prefix of the sync records, which stand beside the owner records."""
        return f"{self.prefix}replicas/"

    @cached_property
    def revivals(self) -> str:
        """Prefix of the operator's words about slots whose newest writes are lost."""
        return f"{self.prefix}revivals/"

    @cached_property
    def challenges(self) -> str:
        """Prefix of the questions through etcd whether a member lives. It stands between the audit log and the commits.

        So :attr:`records` leaves it out: each member watches its own.
        """
        return f"{self.prefix}challenges/"

    @cached_property
    def commits(self) -> str:
        """Prefix of the members' commit markers."""
        return f"{self.prefix}commits/"

    @cached_property
    def sessions(self) -> str:
        """Prefix of the sessions of all slots."""
        return f"{self.prefix}sessions/"

    @cached_property
    def requests(self) -> str:
        """Prefix of the records of what became of requests, see ``request_log``.

        It stands just before the sessions, so that one range leaves out both.
        """
        return f"{self.prefix}session-requests/"

    @cached_property
    def failovers(self) -> str:
        """Prefix of the records of changes of active."""
        return f"{self.prefix}failovers/"

    @cached_property
    def moves(self) -> str:
        """Prefix of the last rebalance. It stands between the failovers and the owners, which are watched together."""
        return f"{self.prefix}moves/"

    @cached_property
    def move_plan(self) -> str:
        """The plan of the last rebalance."""
        return f"{self.moves}plan"

    @cached_property
    def move_progress(self) -> str:
        """How far that plan is carried out."""
        return f"{self.moves}progress"

    @cached_property
    def practices(self) -> str:
        """How the last practices of a switch of sites ended."""
        return f"{self.prefix}practices"

    @cached_property
    def probes(self) -> str:
        """Prefix of the keys that are written only to see when a member has applied their revision."""
        return f"{self.prefix}probes/"

    @cached_property
    def secret(self) -> str:
        """A random secret of the pool, from which the session keys of idempotent creations are derived."""
        return f"{self.prefix}secret"

    @cached_property
    def encryption(self) -> str:
        """The id of the key that sessions are encrypted with, if they are."""
        return f"{self.prefix}encryption"

    @cached_property
    def home(self) -> str:
        """What this etcd's side is, if the pool has a mirror; see ``home``."""
        return f"{self.prefix}home"

    @cached_property
    def home_beat(self) -> str:
        """Written each second while this side is the pool's home, and is known to be."""
        return f"{self.home}-beat"

    @cached_property
    def mirrored(self) -> str:
        """How far this etcd's mirror has come. It stands just before the sessions, so that :attr:`records` omits it."""
        return f"{self.prefix}sessions-mirrored"

    def member(self, member: str) -> str:
        """A member's record; lives on the member's lease."""
        return self.members + member

    def intent(self, member: str) -> str:
        """The operator's intent for a member."""
        return self.admin + member

    def site_intent(self, site: str) -> str:
        """The operator's intent for all members of a site."""
        return self.site_intents + site

    def control(self, control: str) -> str:
        """A control server's addresses; lives on its lease."""
        return self.controls + control

    def owner(self, slot: int) -> str:
        """Owner record of a slot; never on a lease."""
        return f"{self.owners}{slot:05d}"

    def sync_set(self, slot: int) -> str:
        """Sync record of a slot; never on a lease."""
        return f"{self.sync_sets}{slot:05d}"

    def revival(self, slot: int) -> str:
        """The operator's word about a slot whose newest writes are lost."""
        return f"{self.revivals}{slot:05d}"

    def challenge(self, member: str) -> str:
        """The question whether a member lives, or its answer."""
        return self.challenges + member

    def commit(self, member: str) -> str:
        """Commit marker of a member: its last committed batch, in whichever slots."""
        return self.commits + member

    def probe(self, name: str) -> str:
        """A key to write and then to wait for; ``name`` is whoever writes it. Short-lived."""
        return self.probes + name

    def slot_sessions(self, slot: int) -> str:
        """Prefix of the sessions of one slot."""
        return f"{self.sessions}{slot:05d}/"

    def session(self, slot: int, key: str) -> str:
        """One session."""
        return self.slot_sessions(slot) + key

    def failover(self, failover: str, to: str, source: str) -> str:
        """What ``to`` got from ``source`` in the failover named ``failover`` (its trace id in hex)."""
        return f"{self.parts_of_failover(failover)}{to}/{source}"

    def parts_of_failover(self, failover: str) -> str:
        """Prefix of the records of one failover."""
        return f"{self.failovers}{failover}/"

    @property
    def everything(self) -> KeyRange:
        """The range of all the pool's keys."""
        return prefix_range(self.prefix)

    @property
    def records(self) -> tuple[KeyRange, ...]:
        """The ranges of the pool's records, which change seldom.

        They leave out what changes with every commit: commit markers, sessions, and records of requests. They also
        leave out the audit log, which no process acts on, and the challenges, which concern one member each.
        """
        whole, commits = self.everything, prefix_range(self.commits)
        return (
            KeyRange(whole.start, self.audit),
            KeyRange(commits.end, self.requests),
            KeyRange(prefix_range(self.sessions).end, whole.end),
        )


def groups_of(tenant: str) -> str:
    """Prefix of the groups of a tenant's pools, or with ``-`` of pools without a tenant."""
    return f"{GROUPS}{tenant}/"


@dataclass(frozen=True)
class GroupKeys:
    """Key names of one group of pools. ``group`` is :attr:`PoolSpec.full_group`.

    They are apart from the keys of pools, since every pool of the group reads those of the others.
    """

    group: str

    @cached_property
    def prefix(self) -> str:
        """Prefix of what the pools of the group say about their sites."""
        return f"{GROUPS}{self.group}/"

    def pool(self, pool: str) -> str:
        """What one pool says; written by its leading control server."""
        return self.prefix + pool


def slot_in(key: str, prefix: str) -> int:
    """The slot number that follows ``prefix`` in a key of owners, sync sets or sessions.

    Raises ``ValueError`` unless it is five digits, of a slot that a pool may have, with nothing or a slash behind.
    """
    digits, slash, rest = key[len(prefix) :].partition("/")
    slot = int(digits) if len(digits) == _DIGITS and digits.isascii() and digits.isdigit() else MAX_SLOTS
    if slot >= MAX_SLOTS or bool(slash) != bool(rest):
        raise ValueError("its key names no slot")
    return slot
