"""The command line: ``python -m producer COMMAND``.

Data goes to stdout, everything said to a person to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import click

from producer.client import Producer
from producer.indexing import currency, find, index, ledger_entry, ledger_line, look_at_catalogue, say
from worker.errors import (
    FAILURE_WORDS,
    ConfigurationError,
    JobUnknown,
    NoWorker,
    PosterError,
    RedisUnreachable,
)
from worker.messages import Poster
from worker.progress import Failure
from worker.settings import load_settings

EX_OK: Final = 0
EX_SOME_FAILED: Final = 1
EX_USAGE: Final = 2
EX_OUT_OF_REACH: Final = 3
EX_INTERRUPTED: Final = 130


class _Group(click.Group):
    """Gives every error of ours its line and its exit status; nobody is shown a stack trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (RedisUnreachable, NoWorker) as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(EX_OUT_OF_REACH)
        except (ConfigurationError, JobUnknown) as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(EX_USAGE)
        except PosterError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(EX_SOME_FAILED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Turn posters into CLIP vectors through a queue and a GPU worker.

    Settings come from config.json, then POSTERS_* variables, then options.

    \b
    Exit status: 0 all went well; 1 finished, and some posters failed;
    2 wrong usage or configuration; 3 Redis or a worker out of reach;
    130 interrupted (the job goes on, its id is printed).
    """


def _example(text: str) -> Callable[[Any], Any]:
    """Set the example that the help of a command ends with."""

    def decorate(command: Any) -> Any:
        command.epilog = f"\b\nExample:\n  {text}"
        return command

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


@_example("python -m producer index posters/")
@main.command("index")
@click.argument("paths", nargs=-1, metavar="[PATH…]")
@click.option("--batch", type=click.IntRange(1, 4096), help="Posters per message (default 256).")
@click.option("--force", is_flag=True, help="Embed what the store already holds, too.")
@click.option("--detach", is_flag=True, help="Send everything and leave; follow with `status`.")
@click.option("--dry-run", is_flag=True, help="Only list what would be sent, one path per line; sends nothing.")
@as_json
def index_command(
    paths: tuple[str, ...], batch: int | None, force: bool, detach: bool, dry_run: bool, as_json: bool
) -> None:
    """Embed the posters in PATH (files or folders; default: the whole posters root) that are new or changed."""
    producer = Producer(load_settings(posters_per_batch=batch))
    if dry_run:
        _dry_run(producer, paths, force=force)
        return
    try:
        job, progress = index(producer, paths, force=force, detach=detach, quiet=as_json)
    except KeyboardInterrupt as interrupt:
        job_id = interrupt.args[0] if interrupt.args else "last"
        say(f"interrupted; job {job_id} goes on. Follow it: `python -m producer status {job_id}`; ")
        say(f"stop it: `python -m producer cancel {job_id}`")
        sys.exit(EX_INTERRUPTED)
    if detach:
        say(f"sent; follow it with `python -m producer status {job.id}`")
    failures = job.failures() if progress.failed else []
    for failure in failures[:20]:
        say(f"failed: {failure.path}: {failure.word}: {failure.reason}")
    if len(failures) > 20:
        say(f"… and {len(failures) - 20} more: `python -m producer failures {job.id}`")
    if progress.state == "cancelled":
        say(f"job {job.id} was cancelled; {progress.cancelled} poster(s) were withdrawn")
    _warn_if_untrained(producer)
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)


@_example("python -m producer status last")
@main.command()
@click.argument("job", required=False)
@as_json
def status(job: str | None, as_json: bool) -> None:
    """Show the workers and the newest jobs, or one JOB (an id, or `last`)."""
    producer = Producer()
    jobs = [producer.job(job)] if job else [producer.job(name) for name in producer.ledger.jobs()]
    progresses = [entry.progress() for entry in jobs]
    workers = producer.workers()
    if as_json:
        entries = [
            ledger_entry(progress) | {"state": _state(progress), "open_batches": progress.open_batches}
            for progress in progresses
        ]
        people = [{"name": worker.name, "state": worker.state, **worker.fields} for worker in workers]
        click.echo(json.dumps({"jobs": entries, "workers": people}))
        return
    for worker in workers:
        about = " ".join(filter(None, (worker.get("model"), worker.get("device"), worker.get("precision"))))
        say(f"worker {worker.name}: {worker.state} {about}")
    if not workers:
        say("no worker is alive: start one with `celery -A worker worker`")
    for progress in progresses:
        click.echo(f"{_state(progress)} {ledger_line(progress)} open_batches {progress.open_batches}")
    if not progresses:
        say("no jobs yet: `python -m producer index posters/`")


@_example("python -m producer failures last --json")
@main.command()
@click.argument("job")
@as_json
def failures(job: str, as_json: bool) -> None:
    """List the posters of JOB that failed: path, word, reason."""
    producer = Producer()
    entry = producer.job(job)
    entry.progress()
    found = entry.failures()
    if as_json:
        click.echo(json.dumps([failure._asdict() for failure in found]))
        return
    for failure in found:
        click.echo(f"{failure.path}\t{failure.word}\t{failure.reason}")


@_example("python -m producer retry last --only crashed-worker")
@main.command()
@click.argument("job")
@click.option("--only", type=click.Choice(FAILURE_WORDS), help="Only failures of this word.")
@as_json
def retry(job: str, only: str | None, as_json: bool) -> None:
    """Send the failed posters of JOB again, as a new job that this command waits for."""
    producer = Producer()
    entry = producer.job(job)
    entry.progress()
    again = [failure for failure in entry.failures() if only in (None, failure.word)]
    if not again:
        say(f"job {entry.id} has no failures" + (f" of the word {only}" if only else ""))
        return
    new = producer.begin()
    for _ in producer.feed(new, (_as_poster(failure) for failure in again)):
        pass
    say(f"sent {len(again)} poster(s) as job {new.id}")
    progress = new.wait()
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)


@_example("python -m producer cancel last")
@main.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Withdraw what no worker has begun of JOB; a batch in work is finished and counted."""
    producer = Producer()
    entry = producer.job(job)
    say(f"{entry.cancel()} poster(s) withdrawn")
    click.echo(ledger_line(entry.progress()))


@_example("python -m producer doctor")
@main.command()
@as_json
def doctor(as_json: bool) -> None:
    """Check Redis, worker, model, posters root and store, and say what to do."""
    from producer.doctor import examine

    findings = list(examine(Producer()))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.seen}")
            if finding.advice:
                click.echo(f"     → {finding.advice}")
    if all(finding.ok for finding in findings):
        return
    out_of_reach = any(not finding.ok and finding.name in ("redis", "worker") for finding in findings)
    sys.exit(EX_OUT_OF_REACH if out_of_reach else EX_USAGE)


@_example("python -m producer demo")
@main.command()
@as_json
def demo(as_json: bool) -> None:
    """Show all of it on the sample posters, with a Redis and a worker of its own."""
    from producer.demo import run_demo

    progress = run_demo()
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)


def _dry_run(producer: Producer, paths: tuple[str, ...], *, force: bool) -> None:
    found = find(producer, paths)
    look_at_catalogue(producer.settings)
    is_current = currency(producer)
    todo = unchanged = broken = 0
    while block := list(islice(found, producer.settings.posters_per_batch)):
        posters = [item for item in block if isinstance(item, Poster)]
        current = is_current(posters) if posters and not force else set()
        unchanged += len(current)
        for item in block:
            if isinstance(item, Failure):
                broken += 1
                say(f"cannot be sent: {item.path}: {item.word}: {item.reason}")
            elif item.id not in current:
                todo += 1
                click.echo(item.path)
    say(f"{todo} poster(s) to send, {unchanged} unchanged, {broken} that cannot be sent; nothing was sent")


def _as_poster(failure: Failure) -> Poster | Failure:
    """A failed poster as it is sent again; one that never was a file fails again as it did."""
    return Poster(failure.id, failure.path) if failure.word != "unsupported" or "#" not in failure.id else failure


def _state(progress: Any) -> str:
    return "finished" if progress.at_rest and progress.state == "sent" else str(progress.state)


def _warn_if_untrained(producer: Producer) -> None:
    space = producer.space()
    if space is not None and space.weights.startswith("untrained"):
        say("note: these vectors come from UNTRAINED weights; they are good for demonstrations and tests only")


if __name__ == "__main__":
    main(prog_name="python -m producer")
