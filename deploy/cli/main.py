"""The command line, ``understudy``.

The module of a command is imported when the command is called. All errors end here: each becomes one line that says
what failed, where, and what to do. Exit codes: 0 success, 1 negative answer, 2 wrong use or a missing part.
"""

import asyncio
import difflib
import gc
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from understudy import __version__
from understudy.deploy.common.errors import DeployError, NoPoolError
from understudy.deploy.common.options import examples, shown_option
from understudy.deploy.common.printable import one_line

SECTIONS = {
    "On this machine": {
        "demo": ("understudy.deploy.cli.commands_local", "Kill a member under load and report what its clients saw."),
        "up": ("understudy.deploy.cli.commands_local", "Run a whole pool on this machine until Ctrl-C."),
    },
    "Inspect": {
        "status": (
            "understudy.deploy.cli.commands_status",
            "Show the state of members, control servers, etcd and Envoys.",
        ),
        "table": ("understudy.deploy.cli.commands_read", "Show the active, standby and backup members of all slots."),
        "explain": ("understudy.deploy.cli.commands_read", "Show the slot, the owner and the state of one session."),
        "sessions": ("understudy.deploy.cli.commands_read", "List sessions with slot, size and expiry."),
        "failovers": ("understudy.deploy.cli.commands_read", "List takeovers and handovers, latest first."),
        "trace": ("understudy.deploy.cli.commands_read", "Show one takeover or handover phase by phase."),
        "audit": ("understudy.deploy.cli.commands_audit", "Show who did what to a pool, why, and how to undo it."),
        "slo": ("understudy.deploy.cli.commands_slo", "Check failovers against the pool's objectives."),
    },
    "Operate": {
        "apply": ("understudy.deploy.cli.commands_apply", "Validate a pool spec and write it to etcd."),
        "schema": ("understudy.deploy.cli.commands_schema", "Print the JSON schema of pool specs."),
        "pools": ("understudy.deploy.cli.commands_pools", "List the pools in etcd, or delete one."),
        "drain": ("understudy.deploy.cli.commands_drain", "Take a member out of service; no request fails."),
        "undrain": ("understudy.deploy.cli.commands_drain", "Bring a drained member back into service."),
        "site": ("understudy.deploy.cli.commands_site", "Take a whole site out of service, or bring it back."),
        "slots": ("understudy.deploy.cli.commands_slots", "List slots whose newest writes are lost; revive them."),
        "checks": ("understudy.deploy.cli.commands_checks", "Register, report and list the health checks of a member."),
        "drill": ("understudy.deploy.cli.commands_drill", "Inject a fault and report what clients saw."),
        "verify": ("understudy.deploy.cli.commands_data", "Compare all copies of sessions with etcd; run preflight."),
        "backup": ("understudy.deploy.cli.commands_data", "Write a pool's spec, sessions and epochs to a file."),
        "restore": ("understudy.deploy.cli.commands_data", "Restore a pool from a backup file."),
    },
    "Run one process": {
        "control": ("understudy.deploy.cli.commands_run", "Run a control server: slot table, xDS, traces."),
        "sidecar": ("understudy.deploy.cli.commands_run", "Run the sidecar of one application instance."),
        "envoy": ("understudy.deploy.cli.commands_run", "Run a front Envoy that the control servers configure."),
        "leave": ("understudy.deploy.cli.commands_leave", "Hand over all slots before a pod stops (preStop hook)."),
    },
    "Kubernetes and Istio": {
        "render": ("understudy.deploy.cli.commands_render", "Write manifests for Kubernetes or Istio."),
        "inject": ("understudy.deploy.cli.commands_injector", "Add sidecars to the workloads in manifest files."),
        "injector": (
            "understudy.deploy.cli.commands_injector",
            "Run the admission webhook that adds sidecars to pods.",
        ),
    },
}
"""The commands by section, each with its module and its line in ``understudy --help``."""
COMMANDS = {name: module for section in SECTIONS.values() for name, (module, _) in section.items()}
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


class Commands(click.Group):
    """The group of all commands. Each is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, in the order of the help."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands by section, without loading any of them."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:9}", line) for name, (_, line) in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command as click does. For an unknown name, suggest the most similar command."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and near and not args[0].startswith("-"):
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - whatever the command returns
        """Run the command. Every known error becomes a message and an exit code."""
        return _translating_errors(lambda: super(Commands, self).invoke(ctx))


def _translating_errors(run: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the command returns
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


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "understudy demo              kill a member under load",
        "understudy up --members 3    run a pool here; then, in another terminal:",
        "understudy status            show the state of the pool",
        "understudy explain KEY       show the slot and the owner of a session",
    ),
)
@shown_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="UNDERSTUDY_LOG_LEVEL",
    help="Log level of the long-running commands; they log to stderr.",
)
@click.version_option(__version__, message="understudy %(version)s")
@click.pass_context
def cli(ctx: click.Context, log_level: str) -> None:
    """Run stateful services behind Envoy that lose no session when a member dies."""
    ctx.obj = log_level


def main() -> None:
    """The entry point of the ``understudy`` program."""
    try:
        cli(prog_name="understudy")
    except BrokenPipeError:
        # The reader of the output (head, less) has closed the pipe. Without this, Python complains when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    finally:
        gc.freeze()  # else Python searches all objects for cycles when it exits: a sixth of `understudy status`
