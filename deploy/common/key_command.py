"""The class of commands with an argument that anybody may have chosen, such as a session key."""

from collections.abc import Mapping

import click


class KeyCommand(click.Command):
    """A command with an argument that may begin with ``-``: what is not one of its options is an argument.

    Session keys are random, and one in 64 begins with ``-``. A loop over keys must work for all of them. A key that is
    equal to an option must come after ``--``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, with the arguments moved behind ``--``."""
        options, arguments = self._split(ctx, args)
        if len(arguments) > sum(isinstance(parameter, click.Argument) for parameter in self.params):
            return super().parse_args(ctx, args)  # probably a misspelt option: click suggests the right one
        return super().parse_args(ctx, [*options, "--", *arguments])

    def _split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        """The options with their values, and the arguments."""
        known = {
            name: parameter
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        options: list[str] = []
        arguments: list[str] = []
        rest = iter(args)
        for token in rest:
            if token == "--":  # noqa: S105 - no password
                arguments += rest
            elif token in known:
                options.append(token)
                if not known[token].is_flag:
                    options += [value for value in [next(rest, None)] if value is not None]
            elif _has_value(token, known):
                options.append(token)
            else:
                arguments.append(token)
        return options, arguments


def _has_value(token: str, known: Mapping[str, click.Option]) -> bool:
    """Whether ``token`` is an option with its value: ``--pool=cart``, ``-ojson``."""
    name, equals, _ = token.partition("=")
    if equals and name in known and name.startswith("--"):
        return True
    short = known.get(token[:2])
    return short is not None and isinstance(short.type, click.Choice) and token[2:] in short.type.choices
