"""The command line: ``python -m producer COMMAND``."""

from __future__ import annotations

from producer.cli.demo import demo
from producer.cli.doctor import doctor, ready
from producer.cli.export import export
from producer.cli.index import index_command
from producer.cli.jobs import cancel, failures, retry, status
from producer.cli.main import main
from producer.cli.prune import prune
from producer.cli.search import duplicates, identify
from producer.cli.spaces import spaces

COMMANDS = (
    *(index_command, status, failures, retry, cancel, prune),
    *(identify, duplicates, export, spaces),
    *(doctor, ready, demo),
)
for command in COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="python -m producer")
