"""The command line: ``python -m producer COMMAND``."""

from __future__ import annotations

from producer.commands.checks import demo, doctor
from producer.commands.group import main
from producer.commands.index import index_command, retry
from producer.commands.jobs import cancel, failures, status
from producer.commands.prune import prune

for command in (index_command, status, failures, retry, cancel, prune, doctor, demo):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m producer")
