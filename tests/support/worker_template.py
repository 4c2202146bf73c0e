"""A process that has imported what a worker imports, and forks workers: 3 s of processor time less for each.

Celery's command line, its parent process and the child that holds the model are those of ``celery -A worker worker``,
with arguments, environment, folder, process group and exit status of their own; only the interpreter does not start
anew. One template serves all processes of pytest-xdist:

    template ─ keeper (waits for the worker, reports its status) ─ worker ─┬─ child, as billiard would spawn it
                                                                           └─ copy of the template that forks it

Linux only. What starts for real all the same: see Installation.forks_workers.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from billiard import popen_spawn_posix
from celery.__main__ import main as celery_main

from tests.support.project import PROJECT

# Variables that no interpreter and no library reads while it starts.
SETTINGS: Final = ("POSTERS_", "FAULT", "FAKE_", "PYTEST_")
ALIKE: Final = ("OMP_NUM_THREADS", "PYTHONPATH")  # those that every Installation sets to the same
START_S: Final = 90.0
ABOVE: Final = 256  # more descriptors than a worker's parent passes or the template has
HEAD_BYTES: Final = 10
MOST_DESCRIPTORS: Final = 64
PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h
GROUP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
IMPORTS: Final = (
    *("celery.bin.celery", "celery.apps.worker", "celery.concurrency.prefork", "worker.broker.consumer"),
    *("worker.broker.transport", "worker.tasks", "producer.vectors.sqlite", "worker.clip_embedder"),
    *("worker.pipeline.request_embedder", "worker.pipeline.text_embedder"),
)


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a worker with these variables can be forked here: one that an interpreter reads needs a new one.

    What this process has as well is no reason: libraries set variables when they are used.
    """
    changed = (name for name, value in environment.items() if os.environ.get(name) != value)
    return sys.platform == "linux" and all(name in ALIKE or name.startswith(SETTINGS) for name in changed)


class ForkedProcess:
    """A worker forked by the template; has what tests use of subprocess.Popen."""

    def __init__(self, arguments: Sequence[str], *, cwd: str, environment: dict[str, str], output: int) -> None:
        """`arguments` as of ``celery``, whose script comes first; `output`: descriptor for stdout and stderr."""
        self.returncode: int | None = None
        self._connection = _connect(environment)
        request = json.dumps([list(arguments), cwd, environment]).encode()
        socket.send_fds(self._connection, [request[:1]], [output])
        self._connection.sendall(request[1:])
        self._connection.shutdown(socket.SHUT_WR)
        self._answers = self._connection.makefile("rb")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._status(timeout) is None:
            raise subprocess.TimeoutExpired("celery", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _status(self, within_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], within_s)[0]:
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()  # from now on another process may have its id
        return self.returncode


def _address() -> str:
    """In Linux' abstract namespace: it vanishes with the template, and no two can have it."""
    return f"\0posters-template-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"


def _connect(environment: dict[str, str]) -> socket.socket:
    """A connection to the template, which the first that asks starts; it ends with that process."""
    connection = socket.socket(socket.AF_UNIX)
    ends = time.monotonic() + START_S
    while True:
        try:
            connection.connect(_address())
            return connection
        except ConnectionRefusedError:
            if not _started or _started[-1].poll() is not None:
                _started.append(_start(environment))
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)


_started: list[subprocess.Popen[bytes]] = []


def _start(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    plain = {name: value for name, value in environment.items() if not name.startswith(SETTINGS)}
    template = subprocess.Popen(
        [sys.executable, "-m", "tests.support.worker_template", _address().removeprefix("\0")],
        cwd=PROJECT,
        env=plain,
        stdin=subprocess.PIPE,  # never written to; the template ends when it is closed, however this process ends
        stdout=subprocess.DEVNULL,
    )
    atexit.register(template.communicate)
    return template


# ─── in the template, and in what it forks ───


def serve(name: str) -> Callable[[], object]:
    """Fork workers until stdin is closed; returns in each process that is to be one, with what it is to run."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(f"\0{name}")
    except OSError:  # another process of pytest-xdist was faster
        sys.exit()
    listener.listen(64)
    for module in IMPORTS:
        import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the memory of all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a keeper ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal: tests close what they have, then this ends
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit()
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _keep(connection)
        connection.close()


def _keep(connection: socket.socket) -> Callable[[], object]:
    """Fork the worker and report how it ends; returns in the worker."""
    head, (output, *_), _, _ = socket.recv_fds(connection, 1, 1)
    with connection.makefile("rb") as rest:
        arguments, cwd, environment = json.loads(head + rest.read())
    pid = os.fork()
    if not pid:
        connection.close()
        return _become_worker(arguments, cwd, environment, output)
    os.close(output)
    connection.sendall(b"%d\n" % pid)
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    connection.sendall(b"%d\n" % (ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))
    connection.recv(1)  # until the test has read it, the process id stays taken, as that of any child
    os.waitpid(pid, 0)
    os._exit(0)


def _become_worker(arguments: list[str], cwd: str, environment: dict[str, str], output: int) -> Callable[[], object]:
    """Make this process what ``celery`` finds when it starts; its pool spawns children through a fork of it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    main = sys.modules["__main__"]
    main.__file__, main.__spec__ = arguments[0], None  # of which billiard tells the child
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    requests, served = socket.socketpair()
    if not os.fork():
        requests.close()
        return _spawn_for_pool(served)
    served.close()

    def spawnv_passfds(path: str, command: list[str], descriptors: list[int]) -> int:
        """As billiard's, but a fork of the template in place of a new interpreter."""
        request = json.dumps([command, descriptors, dict(os.environ)]).encode()
        socket.send_fds(requests, [b"%*d" % (HEAD_BYTES, len(request))], descriptors)
        requests.sendall(request)
        return int(requests.recv(20))

    popen_spawn_posix.spawnv_passfds = spawnv_passfds
    return celery_main


def _spawn_for_pool(served: socket.socket) -> Callable[[], object]:
    """Fork what the worker's pool asks for until the worker ends; returns in each child, with what it is to run."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        head, received, _, _ = socket.recv_fds(served, HEAD_BYTES, MOST_DESCRIPTORS)
        if not head:
            os._exit(0)
        command, numbers, environment = json.loads(served.recv(int(head), socket.MSG_WAITALL))
        reads, writes = os.pipe()
        between = os.fork()
        if not between:
            child = os.fork()
            if child:
                os.write(writes, b"%d" % child)
                os._exit(0)  # and so the child becomes the worker's, which asked for that by prctl
            served.close()
            return _become_child(command, dict(zip(numbers, received, strict=True)), environment)
        os.waitpid(between, 0)
        served.sendall(os.read(reads, 20))
        for descriptor in (reads, writes, *received):
            os.close(descriptor)


def _become_child(command: list[str], passed: dict[int, int], environment: dict[str, str]) -> Callable[[], object]:
    """Make this process what ``python -c …`` finds when billiard starts it; `passed`: number there → descriptor."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    kept = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD, ABOVE) for number, descriptor in passed.items()}
    os.closerange(3, ABOVE)
    for number, descriptor in kept.items():
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    code = command.index("-c") + 1
    sys.argv[:] = ["-c", *command[code + 1 :]]
    sys.path[0] = ""
    del sys.modules["__main__"].__file__
    return lambda: exec(command[code], {})


if __name__ == "__main__":
    serve(*sys.argv[1:])()
