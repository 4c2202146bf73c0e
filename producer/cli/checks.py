"""``doctor`` and ``demo``: is everything as it should be?"""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from producer.cli.main import EX_OK, EX_OUT_OF_REACH, EX_SOME_FAILED, EX_USAGE, as_json, example
from producer.client import Producer
from producer.output import ledger_entry, ledger_line


@example("python -m producer doctor")
@click.command()
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
    sys.exit(EX_USAGE if all(finding.in_reach for finding in findings) else EX_OUT_OF_REACH)


@example("python -m producer demo")
@click.command()
@as_json
def demo(as_json: bool) -> None:
    """Show all of it on the sample posters, with a Redis and a worker of its own."""
    from producer.demo import run_demo

    progress = run_demo()
    click.echo(json.dumps(ledger_entry(progress)) if as_json else ledger_line(progress))
    sys.exit(EX_SOME_FAILED if progress.failed else EX_OK)
