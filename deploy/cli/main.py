"""The command line, ``understudy``.

The module of a command is imported when the command is called. All errors end here: each becomes one line that says
what failed, where, and what to do. Exit codes: 0 success, 1 negative answer, 2 wrong use or a missing part.
"""

import difflib
import gc
import importlib
import keyword
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from understudy import __version__
from understudy.deploy.cli.failures import translating_errors
from understudy.deploy.common.logs import LogFormat, LogOptions
from understudy.deploy.common.options import examples, shown_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

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
        "top": ("understudy.deploy.cli.commands_top", "Show a pool live in the terminal: slot map, members, problems."),
        "table": ("understudy.deploy.cli.commands_read", "Show the active, standby and backup members of all slots."),
        "capacity": (
            "understudy.deploy.cli.commands_capacity",
            "Show what survivors would carry if a member or a site went.",
        ),
        "explain": ("understudy.deploy.cli.commands_read", "Show the slot, the owner and the state of one session."),
        "sessions": ("understudy.deploy.cli.commands_read", "List sessions with slot, size and expiry."),
        "failovers": ("understudy.deploy.cli.commands_read", "List takeovers and handovers, latest first."),
        "trace": ("understudy.deploy.cli.commands_read", "Show one takeover or handover phase by phase."),
        "audit": ("understudy.deploy.cli.commands_audit", "Show who did what to a pool, why, and how to undo it."),
        "slo": ("understudy.deploy.cli.commands_slo", "Check failovers against the pool's objectives."),
    },
    "Operate": {
        "apply": ("understudy.deploy.cli.commands_apply", "Validate a pool spec and write it to etcd."),
        "completion": ("understudy.deploy.cli.commands_completion", "Print the script for completion in a shell."),
        "schema": ("understudy.deploy.cli.commands_schema", "Print the JSON schema of pool specs."),
        "import": ("understudy.deploy.cli.commands_import", "Make pool specs of another proxy's session affinity."),
        "pools": ("understudy.deploy.cli.commands_pools", "List the pools in etcd, or delete one."),
        "tenants": ("understudy.deploy.cli.commands_tenants", "List tenants, and set what their pools may have."),
        "access": (
            "understudy.deploy.cli.commands_access",
            "Make tokens and etcd roles with rights for the pools of tenants.",
        ),
        "drain": ("understudy.deploy.cli.commands_drain", "Take a member out of service; no request fails."),
        "undrain": ("understudy.deploy.cli.commands_drain", "Bring a drained member back into service."),
        "site": ("understudy.deploy.cli.commands_site", "Take a whole site out of service, or bring it back."),
        "home": (
            "understudy.deploy.cli.commands_home",
            "Show and move the home of a pool with a mirror on a distant site.",
        ),
        "rebalance": (
            "understudy.deploy.cli.commands_rebalance",
            "Plan and make moves of slots that even the load out.",
        ),
        "slots": ("understudy.deploy.cli.commands_slots", "List slots whose newest writes are lost; revive them."),
        "checks": ("understudy.deploy.cli.commands_checks", "Register, report and list the health checks of a member."),
        "drill": ("understudy.deploy.cli.commands_drill", "Inject a fault and report what clients saw."),
        "verify": ("understudy.deploy.cli.commands_data", "Compare all copies of sessions with etcd; run preflight."),
        "backup": ("understudy.deploy.cli.commands_data", "Write a pool's spec, sessions and epochs to a file."),
        "restore": ("understudy.deploy.cli.commands_data", "Restore a pool from a backup file."),
    },
    "Run one process": {
        "control": ("understudy.deploy.cli.commands_control", "Run a control server: slot table, xDS, traces."),
        "sidecar": ("understudy.deploy.cli.commands_sidecar", "Run the sidecar of one application instance."),
        "envoy": ("understudy.deploy.cli.commands_envoy", "Run a front Envoy that the control servers configure."),
        "mirror": ("understudy.deploy.cli.commands_mirror", "Copy a pool into the etcd of a distant site."),
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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        """The commands that begin with ``incomplete``, without loading any of them."""
        from click.shell_completion import CompletionItem

        lines = {name: line for commands in SECTIONS.values() for name, (_, line) in commands.items()}
        names = [CompletionItem(name, help=line) for name, line in lines.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

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
        function = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - whatever the command returns
        """Run the command. Every known error becomes a message and an exit code."""
        return translating_errors(lambda: super(Commands, self).invoke(ctx))


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
@shown_option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar="UNDERSTUDY_LOG_FORMAT",
    help="Log format of control, sidecar, envoy and injector: text, or one JSON object per line.",
)
@click.version_option(__version__, message="understudy %(version)s")
@click.pass_context
def cli(ctx: click.Context, log_level: str, log_format: LogFormat) -> None:
    """Run stateful services behind Envoy that lose no session when a member dies."""
    ctx.obj = LogOptions(log_level, log_format)


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
