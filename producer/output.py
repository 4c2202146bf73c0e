"""Everything that is printed: data on stdout, messages to people on stderr; and the ledger line of a job.

What is printed contains names of files and titles, which may hold anything. So every line goes through `printable`.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from tqdm import tqdm

from producer.errors import PosterError
from producer.host import program
from producer.logs.formats import as_json
from producer.logs.setup import is_json
from producer.queue.progress import Failure, Progress
from producer.queue.workers import Announcement

if TYPE_CHECKING:
    from producer.queue_client import QueueClient


logger = logging.getLogger(__name__)
SHOWN_FAILURES: Final = 20  # failures that are listed unasked
WORKER_NUMBERS: Final = {
    **{"pid": int, "batch_size": int, "at": float, "progress_at": float, "images_per_second": float},
    **{"requests_per_second": float, "batch_share": float, "restarts": int, "wrong_vectors": int},
    **{"gpu_free_bytes": int, "gpu_total_bytes": int, "gpu_used_bytes": int},
    **{"loaded_at": float, "answered_at": float, "unloaded_since": float, "reloaded_s": float},
}
EX_IOERR: Final = 74  # sysexits.h: stdout is closed, or its disk is full
# Control characters, which a terminal obeys, line ends, characters that turn the direction of a line, lone surrogates.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text on one line that any terminal may show: ESC as ``\\x1b``, a line end as ``\\n``.

    A byte of a file name that is not UTF-8 becomes ``\\xe9``, any other lone surrogate ``\\ud800``.
    """
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    is_byte = 0xDC80 <= code <= 0xDCFF  # how Python holds a byte of a file name that it cannot decode
    return f"\\x{code - 0xDC00:02x}" if is_byte else found[0].encode("unicode_escape").decode("ascii")


def notify(text: str, level: int = logging.INFO, **fields: object) -> None:
    """Write a message to stderr, on one line, without breaking a progress bar; to the log where that is JSON.

    There it has the level and the fields.
    """
    if is_json():
        logger.log(level, "%s", printable(text), extra=fields)
    else:
        tqdm.write(printable(text), file=sys.stderr)


def emit(*fields: str) -> None:
    """Write a line of data to stdout: the fields, separated by tabs."""
    _write("\t".join(map(printable, fields)))


def emit_table(rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> None:
    """Write rows to stdout as lines with aligned columns; see `aligned`."""
    for line in aligned(rows, right=right):
        _write(line)


def emit_json(value: object) -> None:
    """Write a line of JSON to stdout, in ASCII; a number that JSON does not have (NaN, infinity) becomes null."""
    _write(as_json(value))


def emit_json_list(values: Iterable[object]) -> None:
    """Write a JSON list to stdout, an element on each line, in constant memory."""
    separator = "["
    for value in values:
        _write(separator + as_json(value), end="")
        separator = ",\n"
    _write("[]" if separator == "[" else "]")


def aligned(rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Lines with the columns of `rows` below each other, two blanks apart; those in `right` are aligned to the right.

    Widths are a terminal's: a Chinese or Japanese character takes two cells, a combining accent none.
    """
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blanks = " " * (width - _width(cell))
            cells.append(blanks + cell if number in right else cell + blanks)
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth  # 40 ms that most output does not need

    return max(0, wcswidth(text))


def _write(line: str, end: str = "\n") -> None:
    """Write a line to stdout at once; where that is impossible, end the program in order, with EX_IOERR."""
    try:
        if sys.stdout.isatty():  # where a bar may be; its locks cost more than the line
            tqdm.write(line, file=sys.stdout, end=end)
        else:
            sys.stdout.write(line + end)
        sys.stdout.flush()
    except OSError as error:
        _give_up_stdout(error)


def _give_up_stdout(error: OSError) -> None:
    _discard(sys.stdout)
    if error.errno not in (errno.EPIPE, errno.EINVAL):  # a reader that has seen enough; EINVAL: the same on Windows
        notify(f"error: stdout cannot be written: {error.strerror}", logging.ERROR)
    sys.exit(EX_IOERR)


def _discard(stream: TextIO) -> None:
    """Send nowhere what is buffered and what is still written: otherwise Python fails at its end."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class _Messages:
    """stderr that drops what it cannot write: a message is not worth a job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make stdout and stderr fit for a command: they take every character, and one that is closed or full does no harm.

    A character that the stream's encoding lacks is written as ``\\u7247``.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by `2>&-`: the next file that is opened must not get its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for the rest of the process)
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    messages, sys.stderr = sys.stderr, cast(TextIO, _Messages(sys.stderr))
    try:
        yield
    except OSError:
        try:
            sys.stdout.flush()  # click writes help texts by itself
        except OSError as error:
            _give_up_stdout(error)
        raise
    finally:
        sys.stderr.flush()
        sys.stderr = messages


def notify_failures(queue: QueueClient, progress: Progress, failures: Sequence[Failure] | None = None) -> None:
    """List the first failures of a job, and the command that lists the rest.

    `failures` are its first ones, as many as SHOWN_FAILURES or more; None: they are read.
    """
    notify_imbalance(progress)
    if failures is None:
        failures = nsmallest(SHOWN_FAILURES, queue.job_store.failures(progress.job)) if progress.failed else ()
    if progress.failed and not failures:
        notify(
            f"Redis has lost which {progress.failed} poster(s) of job {progress.job} failed, and why: index them again"
        )
    for failure in failures[:SHOWN_FAILURES]:
        text = f"failed: {failure.path}: {failure.word}: {failure.reason}"
        notify(text, logging.WARNING, job=progress.job, id=failure.id, path=failure.path, word=failure.word)
    if progress.failed > SHOWN_FAILURES:
        notify(f"… and {progress.failed - SHOWN_FAILURES} more: `{program()} failures {progress.job}`")
    root = queue.settings.root
    if any(failure.word == "missing" and (root / failure.path).is_file() for failure in failures[:SHOWN_FAILURES]):
        with suppress(PosterError):  # a hint
            roots = sorted({worker.get("root") for worker in queue.workers()} - {""})
            searched = ", ".join(roots) or "another folder"
            notify(f"the worker misses files that are here: it reads {searched}, this program reads {root}")


def notify_imbalance(progress: Progress) -> None:
    """Say that the counts of a job do not add up."""
    if not progress.is_balanced:
        notify(
            f"the counts of job {progress.job} do not add up: {progress.submitted} posters were recorded, and "
            f"{progress.settled} are counted. Something else has changed its keys in Redis. Run `{program()} index` "
            "again: it compares every poster with the store"
        )


def ledger_entry(progress: Progress) -> dict[str, Any]:
    """The ledger line as an object: job, counts, seconds, images per second (embedded ones)."""
    seconds = round(progress.seconds, 3)
    speed = round(progress.embedded / seconds, 1) if seconds else 0.0
    counts = ("job", "submitted", "embedded", "reused", "unchanged", "failed")
    return {name: getattr(progress, name) for name in counts} | {"seconds": seconds, "images_per_second": speed}


def ledger_line(progress: Progress) -> str:
    """The ledger line as text: names and values, separated by blanks."""
    return " ".join(f"{name} {value}" for name, value in ledger_entry(progress).items())


def job_entry(progress: Progress) -> dict[str, Any]:
    """A job as an object: the ledger line, its state, and how far it is."""
    total, left = progress.total, progress.seconds_left
    return ledger_entry(progress) | {
        "state": progress.state if progress.is_balanced else "incomplete",  # Redis has lost some of it
        "open_batches": progress.open_batches,
        "done": progress.done,
        "total": total,
        "percent": None if total is None else math.floor(1000 * progress.done / total) / 10 if total else 100.0,
        "posters_per_second": round(progress.per_second, 1),
        "seconds_left": None if left is None else round(left, 1),
    }


def worker_entry(worker: Announcement) -> dict[str, Any]:
    """A worker's entry; Redis holds its numbers as text."""
    entry: dict[str, Any] = {"name": worker.name, "state": worker.state, **worker.fields}
    for field, number in WORKER_NUMBERS.items():
        with suppress(KeyError, ValueError):  # not set yet; a batch size may be `auto`
            entry[field] = number(entry[field])
    return entry


def emit_ledger(progress: Progress, *, as_json: bool = False) -> None:
    """Write the ledger line of a job to stdout, as text or as an object."""
    if as_json:
        emit_json(ledger_entry(progress))
    else:
        emit(ledger_line(progress))
