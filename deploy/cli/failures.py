"""What a failed command says: every known error becomes a message that says what to do, and an exit code."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import click

from understudy.deploy.common.errors import DeployError, NoPoolError
from understudy.deploy.common.printable import one_line

INTERRUPTED_EXIT_CODE = 130


class Failure(click.ClickException):
    """A failed command: its message, one line for each fault, and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code: int = exit_code  # type: ignore[misc] # click declares it for the class, and reads it from us

    def show(self, file: Any = None) -> None:  # noqa: ANN401 - click's signature
        """Print the message to stderr."""
        for line in self.format_message().split("\n"):
            click.echo(f"understudy: {one_line(line)}", file=file or sys.stderr)


def translating_errors(run: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the command returns
    """Call ``run``. Raise :class:`Failure` for every known error."""
    try:
        return run()
    except NoPoolError as error:
        raise Failure(f"{error}: {_pool_remedy(error)}", error.exit_code) from None
    except DeployError as error:
        raise Failure(str(error), error.exit_code) from None
    except KeyboardInterrupt:
        raise Failure("interrupted", INTERRUPTED_EXIT_CODE) from None
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        raise Failure(message, 2) from None


def _pool_remedy(error: NoPoolError) -> str:
    """What to do about a pool that does not exist: a pool of a similar name, or how to create it."""
    from understudy.deploy.data.pools import similar_pool

    return asyncio.run(similar_pool(error.etcd, error.pool)) or (
        "check --pool and --etcd, or create it with 'understudy apply -f pool.yaml'"
    )


def _user_message(error: Exception) -> str | None:
    """The message for an error from another package; None for an error that a user cannot correct."""
    from understudy.statesync.etcd.client import EtcdError, OutcomeUnknown, Rejected
    from understudy.statesync.pool.spec import SpecError

    if isinstance(error, SpecError):
        return str(error)
    if isinstance(error, OutcomeUnknown):
        return f"{error}; the command may or may not have taken effect: it is safe to run it again"
    if isinstance(error, Rejected):
        return f"{error}; check the user, the password and the permissions (--etcd-user, UNDERSTUDY_ETCD_PASSWORD)"
    if isinstance(error, EtcdError):
        return f"{error}; is etcd running there? (--etcd sets the address, 'understudy up' starts a local etcd)"
    return None
