"""The command line: ``python -m producer COMMAND``."""

from __future__ import annotations

from producer.commands.checks import demo, doctor
from producer.commands.group import main
from producer.commands.index import index_command
from producer.commands.jobs import cancel, failures, status
from producer.commands.prune import prune
from producer.commands.reading import duplicates, export, identify
from producer.commands.retry import retry
from producer.commands.spaces import spaces

COMMANDS = (
    *(index_command, status, failures, retry, cancel, prune),
    *(identify, duplicates, export, spaces),
    *(doctor, demo),
)
for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m producer")
