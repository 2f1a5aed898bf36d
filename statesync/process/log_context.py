"""The pool that the present task works for, for log lines of a process that serves several pools."""

from contextvars import ContextVar

LOG_POOL: ContextVar[str] = ContextVar("log_pool", default="")
"""Set once, at the beginning of the task that serves a pool; tasks that it starts have it too. '': no one pool."""
