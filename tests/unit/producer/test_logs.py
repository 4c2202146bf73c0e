"""The log as JSON: what every line holds, whatever is logged; and the levels."""

import json
import logging
import sys
from datetime import UTC, datetime

import pytest

from producer.logs.formats import JsonFormatter
from producer.logs.setup import ACCESS_LOGGER, AccessFields, is_json, log_to_stderr
from producer.output import notify
from producer.settings import load_settings


def formatted(message="", *args, exc_info=None, level=logging.INFO, **extra):
    record = logging.getLogger("worker.x").makeRecord(
        "worker.x", level, "f.py", 1, message, args, exc_info, extra=extra
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert line.isascii()
    return json.loads(line, parse_constant=pytest.fail), record


def test_every_line_holds_time_level_logger_and_message():
    """The time in UTC, as ISO 8601 writes it."""
    entry, record = formatted("batch %s", "j.1", level=logging.WARNING)
    assert entry.keys() == {"time", "level", "logger", "message", "process", "pid"}
    assert (entry["level"], entry["logger"], entry["message"]) == ("WARNING", "worker.x", "batch j.1")
    assert entry["time"].endswith("Z")
    assert datetime.fromisoformat(entry["time"]) == datetime.fromtimestamp(record.created, UTC).replace(
        microsecond=int(record.created * 1000) % 1000 * 1000
    )


def test_what_a_call_adds_are_fields_of_their_own():
    """Numbers stay numbers; what JSON has no type for becomes text, and NaN null."""
    entry, _ = formatted("x", job="j", posters=3, seconds=0.5, rate=float("nan"), path=sys, counts={"failed": 1})
    assert (entry["job"], entry["posters"], entry["seconds"], entry["rate"]) == ("j", 3, 0.5, None)
    assert entry["path"].startswith("<module")
    assert entry["counts"] == {"failed": 1}


def test_an_exception_is_a_field():
    """With its traceback, on the same line."""
    try:
        raise OSError("the disk\nis full")
    except OSError:
        entry, _ = formatted("failed", exc_info=sys.exc_info())
    assert entry["message"] == "failed"
    assert entry["exception"].startswith("Traceback")
    assert entry["exception"].endswith("OSError: the disk\nis full")
    assert "exception" not in formatted("failed", exc_info=(None, None, None))[0]


def test_a_broken_byte_of_a_file_name_leaves_the_line_readable():
    """Many readers of JSON refuse a lone surrogate."""
    entry, _ = formatted("%s cannot be read", "a\udce9.jpg", path="a\udce9.jpg")
    assert entry["message"] == "a\\udce9.jpg cannot be read"
    assert entry["path"] == "a\\udce9.jpg"


def test_messages_to_people_are_lines_of_the_log_where_that_is_json(capsys):
    """And text again afterwards."""
    with log_to_stderr(load_settings(log="json")):
        assert is_json()
        notify("error: a\x1bb", logging.ERROR, job="j")
    assert not is_json()
    notify("as before")
    first, second = capsys.readouterr().err.splitlines()
    entry = json.loads(first)
    assert (entry["level"], entry["message"], entry["job"]) == ("ERROR", "error: a\\x1bb", "j")
    assert second == "as before"


def test_the_text_of_the_log_is_for_people(capsys):
    """Messages that are not of the log keep their form."""
    with log_to_stderr(load_settings()):
        assert not is_json()
        notify("serving")
        logging.getLogger("producer.x").info("hello", extra={"job": "j"})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "serving"
    assert second.endswith(": INFO/MainProcess] hello")


@pytest.mark.parametrize(("level", "shown"), [("DEBUG", 4), ("INFO", 3), ("WARNING", 2), ("ERROR", 1)])
def test_the_level_is_that_of_our_messages(capsys, level, shown):
    """Of other libraries, warnings and errors are shown, whatever it is."""
    with log_to_stderr(load_settings(log="json", log_level=level)):
        for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger("producer.x").log(number, "ours")
            logging.getLogger("another.x").log(number, "theirs")
    messages = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert (messages.count("ours"), messages.count("theirs")) == (shown, 2)


def requested(target, status):
    """The entry of a request; None where it is left out."""
    args = ("127.0.0.1:5", "GET", target, "1.1", status)
    record = logging.LogRecord(ACCESS_LOGGER, logging.INFO, "f.py", 1, '%s - "%s %s HTTP/%s" %d', args, None)
    return json.loads(JsonFormatter().format(record)) if AccessFields().filter(record) else None


def test_a_request_has_fields_and_no_query():
    """What people search for, and addresses of images, are nobody's business."""
    entry = requested("/find?words=secret", 200)
    assert entry["message"] == '127.0.0.1:5 - "GET /find HTTP/1.1" 200'
    assert (entry["client"], entry["method"], entry["path"], entry["status"]) == ("127.0.0.1:5", "GET", "/find", 200)


def test_probes_are_logged_when_they_fail():
    """A supervisor asks every few seconds."""
    assert requested("/healthz", 200) is None
    assert requested("/readyz", 503)["status"] == 503
