"""``understudy completion``: the script that completes command lines in a shell."""

import click

from understudy.deploy.common.options import examples

VARIABLE = "_UNDERSTUDY_COMPLETE"
"""The environment variable by which the script asks for completions; click derives it from the program's name."""


@click.command(
    epilog=examples(
        "understudy completion bash > ~/.local/share/bash-completion/completions/understudy",
        "understudy completion zsh > ~/.zfunc/_understudy    (with fpath+=~/.zfunc before compinit)",
        "understudy completion fish > ~/.config/fish/completions/understudy.fish",
        "",
        "For this shell only:",
        'eval "$(understudy completion bash)"',
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes commands, options, and names of pools, members and sites.

    Names come from the etcd that the command line or the environment names. If it does not answer within 1 s, none are
    offered. bash must be 4.4 or newer.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from understudy.deploy.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click completes nothing in {shell}: upgrade it")
    click.echo(ShellComplete.source(kind(cli, {}, "understudy", VARIABLE)))
