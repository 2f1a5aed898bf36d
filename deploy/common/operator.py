"""Who runs a command, and why: what the audit log records of an operator."""

import getpass
import os
from typing import TYPE_CHECKING

import click

from understudy.statesync.etcd.settings import EtcdSettings

if TYPE_CHECKING:
    from understudy.statesync.audit.entry import Actor


def _reason(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Option callback: a reason that fits into an audit record."""
    from understudy.statesync.audit.entry import TEXT_MOST

    if len(value) > TEXT_MOST:
        raise click.BadParameter(f"longer than {TEXT_MOST} characters", param=parameter)
    return value.strip()


reason_option = click.option(
    "--reason",
    default="",
    callback=_reason,
    metavar="TEXT",
    help="Why, for the audit log ('understudy audit'). Default: none.",
)


def this_operator(command: str, etcd: EtcdSettings) -> "Actor":
    """The user of this process, which runs ``command``."""
    from understudy.statesync.audit.actor import this_process

    return this_process(user_name(), command, etcd)


def user_name() -> str:
    """The user's name, or the number if it has none; behind sudo also who called it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a user database
        user = str(os.getuid())
    caller = os.environ.get("SUDO_USER", "")
    return f"{user} (sudo by {caller})" if caller and caller != user else user
