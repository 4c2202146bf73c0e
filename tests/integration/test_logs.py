"""POSTERS_LOG=json of the commands that run for long; a worker's log: test_end_to_end.py."""

import json
import re
import signal
import socket
import urllib.request

JSON = {"POSTERS_LOG": "json"}


def entries_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_serve_logs_requests_and_errors(own_installation):
    """Every line of stderr is an object; what people search for is in none."""
    process = own_installation.start("serve", "--port", "0", **JSON)
    first = json.loads(process.stderr.readline())
    address = re.search(r"http://[^ ]+", first["message"])[0]
    assert first["logger"] == "producer.output"
    urllib.request.urlopen(f"{address}static/style.css?words=secret", timeout=10).read()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert out == ""
    assert "secret" not in err
    (request,) = [entry for entry in entries_of(err) if entry["logger"] == "uvicorn.access"]
    assert (request["method"], request["path"], request["status"]) == ("GET", "/static/style.css", 200)


def test_an_error_that_ends_a_command_is_a_line_as_well(own_installation):
    """Here: the port is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = own_installation.run("serve", "--port", str(taken.getsockname()[1]), **JSON)
    assert done.returncode == 2
    (entry,) = entries_of(done.stderr)
    assert entry["level"] == "ERROR"
    assert "cannot be listened on" in entry["message"]


def test_index_logs_what_it_says(own_installation):
    """As under a scheduler; the counts stay on stdout, in the form that was asked for."""
    own_installation.draw(1)
    done = own_installation.run("index", "--detach", "--json", **JSON)
    assert json.loads(done.stdout)["submitted"] == 1
    messages = [entry["message"] for entry in entries_of(done.stderr)]
    assert any("follow it with" in message for message in messages)


def test_watch_logs_each_message(own_installation):
    """stdout is free for `--json`."""
    own_installation.draw(1)
    process = own_installation.start("index", "--watch", "--settle", "0.1", **JSON)
    entry = json.loads(process.stderr.readline())
    assert "no worker is alive" in entry["message"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out == ""
    assert entries_of(err)[-1]["message"] == "stopped watching"
