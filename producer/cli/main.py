"""The command group: exit statuses, options that commands share, the example in each help text.

Data goes to stdout, messages to people go to stderr.
"""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from producer.errors import (
    Busy,
    CommandForbidden,
    ConfigurationError,
    EmbedTimeout,
    JobUnknown,
    LedgerSetBack,
    NoWorker,
    PosterError,
    RedisRefused,
    RedisUnreachable,
    StoreError,
    StoreUnavailable,
)
from producer.host import program
from producer.logs.setup import log_to_stderr
from producer.output import emit, notify, printable, standard_streams
from producer.settings import Settings

DISTRIBUTION: Final = "poster-embedding-queue"
EX_OK: Final = 0
EX_SOME_FAILED: Final = 1
EX_USAGE: Final = 2
EX_UNREACHABLE: Final = 3
EX_NOT_CERTAIN: Final = 4
EX_INTERRUPTED: Final = 130


def exit_status(error: PosterError) -> int:
    """The exit status for an error."""
    if isinstance(error, CommandForbidden | RedisRefused):
        return EX_USAGE
    if isinstance(error, RedisUnreachable | LedgerSetBack | NoWorker | Busy | EmbedTimeout | StoreUnavailable):
        return EX_UNREACHABLE
    return EX_USAGE if isinstance(error, ConfigurationError | JobUnknown | StoreError) else EX_SOME_FAILED


class _Group(click.Group):
    """Prints a PosterError as one line, without a stack trace, and exits with its status."""

    def main(self, *args: Any, **options: Any) -> Any:
        with standard_streams():
            return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PosterError as error:
            notify(f"error: {error}", logging.ERROR)
            ctx.exit(exit_status(error))
        except click.UsageError as error:  # it may quote a file name
            raise click.UsageError(printable(error.format_message()), error.ctx) from error
        except KeyboardInterrupt:
            notify("interrupted")
            ctx.exit(EX_INTERRUPTED)


def _version() -> str:
    """Of the checkout that runs, else of the installed distribution."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        about = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if about.get("name") == DISTRIBUTION:
            return str(about["version"])
    return version(DISTRIBUTION)


def _print_version(context: click.Context, parameter: click.Parameter, is_set: bool) -> None:
    if is_set:
        emit(_version())
        context.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show it.")
def main() -> None:
    """Turn posters into CLIP vectors through a queue and a GPU worker.

    Settings come from config.json, then POSTERS_* variables, then options.

    \b
    Exit status: 0 success; 1 finished, and some posters failed, or the counts do not add up;
    2 wrong usage or configuration; 3 Redis, a worker or the store is unreachable;
    4 `identify` is not certain of an image;
    74 the output is closed or its disk is full;
    130 interrupted (batches already sent are still processed; the job id is printed).
    """


def example(text: str) -> Callable[[Any], Any]:
    """Set the example at the end of a command's help, shown as it can be typed here."""

    def decorate(command: Any) -> Any:
        command.epilog = f"\b\nExample:\n  {text.replace('python -m producer', program())}"
        return command

    return decorate


def log_until_end(settings: Settings) -> None:
    """Let a command that runs for long log to stderr until the program ends, its last error included."""
    click.get_current_context().find_root().with_resource(log_to_stderr(settings))


space_option = click.option("--space", help="Id of a space, or its beginning; default: the one that readers use.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


def exit_interrupted(interrupt: KeyboardInterrupt) -> NoReturn:
    """Print that batches already sent are processed, and how to follow or cancel the job; exit with status 130."""
    job = interrupt.args[0] if interrupt.args else "last"
    notify(f"interrupted: batches already sent will still be processed (job {job})")
    notify(f"  follow: {program()} status {job}")
    notify(f"  cancel: {program()} cancel {job}")
    sys.exit(EX_INTERRUPTED)
