"""What all commands share: the group with its exit statuses, the option ``--json``, the example in the help.

Data goes to stdout, everything said to a person to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

import click

from producer.errors import (
    ConfigurationError,
    EmbedTimeout,
    JobUnknown,
    LedgerSetBack,
    NoWorker,
    PosterError,
    RedisUnreachable,
    StoreError,
    StoreUnavailable,
)
from producer.output import notify

EX_OK: Final = 0
EX_SOME_FAILED: Final = 1
EX_USAGE: Final = 2
EX_OUT_OF_REACH: Final = 3
EX_INTERRUPTED: Final = 130


def status_of(error: PosterError) -> int:
    """The exit status that an error means."""
    if isinstance(error, RedisUnreachable | LedgerSetBack | NoWorker | EmbedTimeout | StoreUnavailable):
        return EX_OUT_OF_REACH
    return EX_USAGE if isinstance(error, ConfigurationError | JobUnknown | StoreError) else EX_SOME_FAILED


class _Group(click.Group):
    """Gives every error of ours its line and its exit status; nobody is shown a stack trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PosterError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(status_of(error))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EX_INTERRUPTED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Turn posters into CLIP vectors through a queue and a GPU worker.

    Settings come from config.json, then POSTERS_* variables, then options.

    \b
    Exit status: 0 all went well; 1 finished, and some posters failed;
    2 wrong usage or configuration; 3 Redis or a worker out of reach;
    130 interrupted (the job goes on, its id is printed).
    """


def example(text: str) -> Callable[[Any], Any]:
    """Set the example that the help of a command ends with."""

    def decorate(command: Any) -> Any:
        command.epilog = f"\b\nExample:\n  {text}"
        return command

    return decorate


space_option = click.option("--space", help="Id of a space, or its beginning; default: the one that readers use.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


def leave_interrupted(interrupt: KeyboardInterrupt) -> NoReturn:
    """Say that the job goes on, and how to follow or stop it; leave with status 130."""
    job = interrupt.args[0] if interrupt.args else "last"
    notify(f"interrupted; job {job} goes on. Follow it: `python -m producer status {job}`; ")
    notify(f"stop it: `python -m producer cancel {job}`")
    sys.exit(EX_INTERRUPTED)
