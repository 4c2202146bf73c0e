"""The command line: ``python -m producer COMMAND``, or ``posters COMMAND``."""

from __future__ import annotations

import os
import sys

try:
    from producer.cli.calibrate import calibrate_command
    from producer.cli.demo import demo
    from producer.cli.doctor import doctor, ready
    from producer.cli.export import export
    from producer.cli.index import index_command
    from producer.cli.jobs import cancel, failures, pause, resume, retry, status
    from producer.cli.main import main
    from producer.cli.prune import prune
    from producer.cli.search import duplicates, identify
    from producer.cli.serve import serve
    from producer.cli.spaces import spaces
    from producer.host import let_warnings_warn, program
except KeyboardInterrupt:  # the imports take half a second
    sys.exit(130)

COMMANDS = (
    *(index_command, status, failures, retry, cancel, pause, resume, prune),
    *(identify, calibrate_command, duplicates, export, spaces),
    *(serve, doctor, ready, demo),
)
for command in COMMANDS:
    main.add_command(command)


def run() -> None:
    """Run the command line; the console script `posters`."""
    if sys.getfilesystemencoding() != "utf-8":  # the locale's: the same file would have another name, and so another id
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    let_warnings_warn()
    main(prog_name=program())


if __name__ == "__main__":
    run()
