"""The command line, ``understudy``.

Each command is a module that is loaded when it is called for. All errors end here: one line that says what, where
and what to do, and an exit code: 0 fine, 1 the answer is no, 2 wrong use or a missing part.
"""

import asyncio
import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from understudy import __version__
from understudy.deploy.common.errors import DeployError, NoPoolError
from understudy.deploy.common.options import examples
from understudy.deploy.common.printable import one_line

SECTIONS = {
    "On this machine": {
        "demo": ("understudy.deploy.cli.commands_local", "Kill a member under load, and see what its clients notice."),
        "up": ("understudy.deploy.cli.commands_local", "Run a whole pool here until Ctrl-C, with a live status."),
    },
    "See": {
        "status": ("understudy.deploy.cli.commands_status", "Members, control servers, etcd, Envoys: is all well?"),
        "table": ("understudy.deploy.cli.commands_read", "Who is active, standby and backup for which slots."),
        "explain": ("understudy.deploy.cli.commands_read", "Where the session of a key lives, and why there."),
        "sessions": ("understudy.deploy.cli.commands_read", "Sessions with slot, size and expiry."),
        "failovers": ("understudy.deploy.cli.commands_read", "Changes of active, the latest first."),
        "trace": ("understudy.deploy.cli.commands_read", "One of them phase by phase."),
        "slo": ("understudy.deploy.cli.commands_slo", "Are the pool's objectives met, and by what evidence?"),
    },
    "Operate": {
        "apply": ("understudy.deploy.cli.commands_apply", "Check a pool spec and put it into etcd."),
        "schema": ("understudy.deploy.cli.commands_schema", "The JSON schema of pool specs, for editors."),
        "pools": ("understudy.deploy.cli.commands_pools", "List the pools in etcd; delete one."),
        "drain": ("understudy.deploy.cli.commands_admin", "Take a member out of service; no request fails."),
        "undrain": ("understudy.deploy.cli.commands_admin", "Bring it back."),
        "site": ("understudy.deploy.cli.commands_site", "The same for all members of a site."),
        "checks": ("understudy.deploy.cli.commands_checks", "What must be well for a member to serve."),
        "drill": ("understudy.deploy.cli.commands_drill", "Break a part on purpose, and tell what clients noticed."),
        "verify": ("understudy.deploy.cli.commands_data", "Compare all copies of sessions with etcd; preflight."),
        "backup": ("understudy.deploy.cli.commands_data", "Write a pool's spec, sessions and epochs to a file."),
        "restore": ("understudy.deploy.cli.commands_data", "Put them back."),
    },
    "Run the parts": {
        "control": ("understudy.deploy.cli.commands_run", "A control server: slot table, xDS, traces."),
        "sidecar": ("understudy.deploy.cli.commands_run", "The sidecar of one application instance."),
        "envoy": ("understudy.deploy.cli.commands_run", "A front Envoy that the control servers configure."),
        "leave": ("understudy.deploy.cli.commands_leave", "Hand over and go: the preStop hook of a pod."),
    },
    "On Kubernetes and Istio": {
        "render": ("understudy.deploy.cli.commands_render", "Write the manifests that run a pool on a platform."),
        "inject": ("understudy.deploy.cli.commands_injector", "Add sidecars to workloads in files."),
        "injector": ("understudy.deploy.cli.commands_injector", "The admission webhook that does so in a cluster."),
    },
}
"""The commands by what they are for, each with its module and its line in ``understudy --help``."""
COMMANDS = {name: module for section in SECTIONS.values() for name, (module, _) in section.items()}
_INTERRUPTED = 130


class Failure(click.ClickException):
    """A failed command: its message in one line (or one per fault), and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code: int = exit_code  # type: ignore[misc] # click declares it for the class, and reads it from us

    def show(self, file: Any = None) -> None:  # noqa: ANN401 - click's signature
        """Print the message to stderr."""
        for line in self.format_message().split("\n"):
            click.echo(f"understudy: {one_line(line)}", file=file or sys.stderr)


class Commands(click.Group):
    """The group of all commands, each loaded when needed."""

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
        """As click does, and name the nearest command to one that does not exist."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and near and not args[0].startswith("-"):
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Load a command."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - whatever the command returns
        """Run the command and turn every known error into a message and an exit code."""
        return _explained(lambda: super(Commands, self).invoke(ctx))


def _explained(run: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the command returns
    """Run ``run``, and raise :class:`Failure` for whatever it is known to raise."""
    try:
        return run()
    except NoPoolError as error:
        raise Failure(f"{error}: {_remedy(error)}", error.exit_code) from None
    except DeployError as error:
        raise Failure(str(error), error.exit_code) from None
    except KeyboardInterrupt:
        raise Failure("stopped", _INTERRUPTED) from None
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        message = _known(error)
        if message is None:
            raise
        raise Failure(message, 2) from None


def _remedy(error: NoPoolError) -> str:
    """What may be meant by the name of a pool that is not there, or how to make it."""
    from understudy.deploy.data.pools import near

    return asyncio.run(near(error.etcd, error.pool)) or (
        "check --pool and --etcd, or make it with 'understudy apply -f pool.yaml'"
    )


def _known(error: Exception) -> str | None:
    """The message of an error of another room, None if it is none that a user can do something about."""
    from understudy.statesync.etcd.client import EtcdError, OutcomeUnknown, Rejected
    from understudy.statesync.pool.spec import SpecError

    if isinstance(error, SpecError):
        return str(error)
    if isinstance(error, OutcomeUnknown):
        return f"{error}; it may have been carried out or not: the same command again is safe"
    if isinstance(error, Rejected):
        return f"{error}; check the credentials and rights (--etcd-user, UNDERSTUDY_ETCD_PASSWORD)"
    if isinstance(error, EtcdError):
        return f"{error}; is etcd running there? ('understudy up' starts one, --etcd names yours)"
    return None


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "understudy demo              kill a member and see what its clients notice",
        "understudy up --members 3    run a pool here; then, in another terminal:",
        "understudy status            who is there, and who serves what",
        "understudy explain KEY       where a session lives",
    ),
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="UNDERSTUDY_LOG_LEVEL",
    help="How much the long-running commands log (to stderr).",
)
@click.version_option(__version__, message="understudy %(version)s")
@click.pass_context
def cli(ctx: click.Context, log_level: str) -> None:
    """Stateful services behind Envoy that lose no session when a member dies."""
    ctx.obj = log_level


def main() -> None:
    """The entry point of the ``understudy`` program."""
    try:
        cli(prog_name="understudy")
    except BrokenPipeError:
        # The reader of our output (head, less) has enough; leave without a complaint at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
